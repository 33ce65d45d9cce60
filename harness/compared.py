"""Two recordings of one tensor side by side: what counts of them, and what a prediction leaves of the error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

CLEARLY = 100.0
"""How many times smaller than the error a residual above the floor must be for a prediction to hold."""

SHARE = 0.9
"""Least share of the squared error of a prediction that holds. As :data:`DATA` has it, a fit of unrelated numbers
reaches 0.5."""

DATA, SPARE = 2, 8
"""A fit needs twice as many numbers as parameters, and eight more: fewer fit anything."""

SAMPLE = 1 << 16
"""Elements that a prediction is tried on first."""

HUGE = 1e150
"""Magnitude from which squares leave float64: counted as infinite, which it is in every dtype engines use."""

TINY = 1e-150
"""Magnitude below which squares vanish from float64: counted as zero, which it is in every dtype engines use."""


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A candidate's tensor beside the reference's.

    Parameters
    ----------
    candidate, reference
        One shape, in float64; 0 where they do not count.
    counts
        Entries that are seen and finite in both.
    axes
        Names of the axes.
    floor
        Relative error of a token up to which a correct engine's rounding goes.
    scale
        One over each token's norm in the reference (in the candidate where the reference is zero), 1 along other axes.
    """

    candidate: Floats
    reference: Floats
    counts: Mask
    axes: tuple[str, ...]
    floor: float
    scale: Floats

    @property
    def token_axis(self) -> int:
        """Which axis the tokens lie along."""
        return self.axes.index("tokens")

    @property
    def lengths(self) -> dict[str, int]:
        """Length of each axis by name."""
        return dict(zip(self.axes, self.reference.shape, strict=True))

    @property
    def errors(self) -> Floats:
        """Relative error of each token [tokens]."""
        return self.norms((self.candidate - self.reference) * self.scale)

    @property
    def rms(self) -> Floats:
        """Root mean square of each token's values, 1 along other axes."""
        count = np.maximum(self.counts.sum(self._rest, keepdims=True), 1)
        rms: Floats = 1 / (self.scale * np.sqrt(count))
        return rms

    def norms(self, x: Floats) -> Floats:
        """Euclidean norm of each token [tokens]."""
        rows = np.moveaxis(x, self.token_axis, 0).reshape(x.shape[self.token_axis], -1)
        squares: Floats = np.einsum("tn,tn->t", rows, rows)
        return np.sqrt(squares)

    def part(self) -> Compared:
        """Not more than :data:`SAMPLE` elements: half of them where the error is largest, half spread evenly."""
        part = self
        while part.reference.size > SAMPLE:
            axis = int(np.argmax(part.reference.shape))
            n = part.reference.shape[axis]
            wanted = max(2, min(n - 1, SAMPLE * n // part.reference.size))
            part = part.take(axis, part._worst(axis, wanted))
        return part

    def take(self, axis: int, indices: Indices) -> Compared:
        """Some slices along an axis."""
        tokens = axis == self.token_axis
        return replace(
            self,
            candidate=self.candidate.take(indices, axis),
            reference=self.reference.take(indices, axis),
            counts=self.counts.take(indices, axis),
            scale=self.scale.take(indices, axis) if tokens else self.scale,
        )

    def _worst(self, axis: int, wanted: int) -> Indices:
        """Indices along an axis: those of the largest errors and evenly spread ones."""
        delta = (self.candidate - self.reference) * self.scale
        n = delta.shape[axis]
        energy = np.square(delta, out=delta).sum(tuple(i for i in range(delta.ndim) if i != axis))  # [n]
        worst = np.argsort(energy, kind="stable")[n - wanted // 2 :]
        spread = np.linspace(0, n - 1, wanted - wanted // 2).astype(np.intp)
        both: Indices = np.union1d(worst, spread).astype(np.intp)
        return both

    @property
    def _rest(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.axes)) if i != self.token_axis)


@dataclass(frozen=True, slots=True)
class Left:
    """What a prediction of the candidate's values leaves.

    Parameters
    ----------
    share
        The part of the squared error (tokens scaled to one norm) that it accounts for, 0 to 1.
    holds
        Whether the residual is at the floor or :data:`CLEARLY` smaller than the error.
    residual
        Largest relative residual of a token.
    """

    share: float
    holds: bool
    residual: float


def compared(
    candidate: npt.ArrayLike, reference: npt.ArrayLike, axes: tuple[str, ...], floor: float, seen: Mask | None
) -> Compared:
    """Lay two recordings side by side; entries that are hidden or not finite do not count."""
    c, r = widened(candidate), widened(reference)
    counts = np.isfinite(c) & np.isfinite(r)
    if seen is not None:
        counts &= seen
    c, r = np.where(counts, c, 0.0), np.where(counts, r, 0.0)
    x = Compared(
        c, r, counts, axes, floor, np.ones([n if a == "tokens" else 1 for a, n in zip(axes, r.shape, strict=True)])
    )
    size = x.norms(r)
    size = np.where(size > 0, size, x.norms(c))
    return replace(x, scale=1 / np.where(size > 0, size, 1.0).reshape(x.scale.shape))


def widened(x: npt.ArrayLike) -> Floats:
    """In float64, what lies outside of all dtypes that engines use being infinite or zero."""
    wide = np.asarray(x, np.float64)
    large = np.abs(wide)
    odd = (large > HUGE) | (large < TINY)
    if odd.any():
        wide = np.where(large > HUGE, np.copysign(np.inf, wide), np.where(large < TINY, 0.0, wide))
    return wide


def left(x: Compared, predicted: Floats) -> Left:
    """Measure what a prediction, 0 where nothing counts, leaves of the error."""
    error, residual = x.errors, x.norms((x.candidate - predicted) * x.scale)
    size = np.maximum(1.0, x.norms(predicted * x.scale))
    before, after = float(error @ error), float(residual @ residual)
    share = max(0.0, 1 - after / before) if before > 0 else 0.0
    at_floor = bool((residual <= x.floor * size).all())
    holds = share >= SHARE and (at_floor or after * CLEARLY**2 <= before)
    return Left(share, holds, float((residual / size).max(initial=0.0)))


def enough(x: Compared, parameters: int) -> bool:
    """Whether there are enough numbers for so many parameters to say anything."""
    count = int(x.counts.sum())
    return count >= DATA * parameters and count - parameters >= SPARE


def cosine(x: Compared) -> float:
    """Cosine of the angle between the two, tokens scaled to one norm."""
    c, r = (x.candidate * x.scale).ravel(), (x.reference * x.scale).ravel()
    size = math.sqrt(float(c @ c) * float(r @ r))
    return float(c @ r) / size if size > 0 else 0.0
