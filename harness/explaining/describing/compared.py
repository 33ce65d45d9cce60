"""Two recordings of one tensor side by side: what counts of them, and what a prediction leaves of the error."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import token_axis

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

CLEARLY = 100.0
"""How many times smaller than the error a residual above the floor must be for a prediction to hold."""

SHARE = 0.9
"""Least share of the squared error that a prediction must explain. A fit of unrelated numbers reaches 0.5, see
:data:`~firstdiff.explaining.describing.fits.DATA`."""

AGREE, MOSTLY = 0.5, 0.9
"""A prediction that holds moves nine in ten of the values that it changes to within half of the change. Without it, a
rule that is right for one value a thousand times larger than the others would hold for all."""

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
    errors
        Relative error of each token [token].
    heads
        How many heads lie side by side along the last axis; 0 where none do.
    """

    candidate: Floats
    reference: Floats
    counts: Mask
    axes: tuple[str, ...]
    floor: float
    scale: Floats
    errors: Floats
    heads: int = 0

    @property
    def token_axis(self) -> int:
        """Which axis the tokens lie along."""
        return token_axis(self.axes)

    @property
    def lengths(self) -> dict[str, int]:
        """Length of each axis by name."""
        return dict(zip(self.axes, self.reference.shape, strict=True))

    @property
    def row(self) -> int:
        """How many values a token has."""
        return self.reference.size // max(1, len(self.errors))

    @property
    def rms(self) -> Floats:
        """Root mean square of each token's values, 1 along other axes."""
        count = np.maximum(self.counts.sum(self._rest, keepdims=True), 1)
        rms: Floats = 1 / (self.scale * np.sqrt(count))
        return rms

    def norms(self, x: Floats) -> Floats:
        """Euclidean norm of each token [token]."""
        return norms(x, self.token_axis)

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
        candidate, reference = self.candidate.take(indices, axis), self.reference.take(indices, axis)
        counts = self.counts.take(indices, axis)
        scale = self.scale.take(indices, axis) if axis == self.token_axis else self.scale
        errors = norms((candidate - reference) * scale, self.token_axis)
        return replace(self, candidate=candidate, reference=reference, counts=counts, scale=scale, errors=errors)

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
        Whether the residual is at the floor of what is predicted, or :data:`CLEARLY` smaller than the error and the
        candidate, and not by virtue of a few large values alone.
    """

    share: float
    holds: bool


def compared(
    candidate: npt.ArrayLike, reference: npt.ArrayLike, axes: tuple[str, ...], floor: float, seen: Mask | None
) -> Compared:
    """Lay two recordings side by side; entries that are hidden or not finite do not count."""
    c, r = widened(candidate), widened(reference)
    counts = np.isfinite(c) & np.isfinite(r)
    if seen is not None:
        counts &= seen
    c, r = np.where(counts, c, 0.0), np.where(counts, r, 0.0)
    token = token_axis(axes)
    size = norms(r, token)
    size = np.where(size > 0, size, norms(c, token))
    scale = (1 / np.where(size > 0, size, 1.0)).reshape([-1 if i == token else 1 for i in range(len(axes))])
    return Compared(c, r, counts, axes, floor, scale, norms((c - r) * scale, token))


def norms(x: Floats, axis: int) -> Floats:
    """Euclidean norms of the slices along an axis."""
    rows = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    squares: Floats = np.einsum("tn,tn->t", rows, rows)
    return np.sqrt(squares)


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
    size = x.norms(predicted * x.scale)
    before, after = float(error @ error), float(residual @ residual)
    share = max(0.0, 1 - after / before) if before > 0 else 0.0
    if share < SHARE:
        return Left(share, False)
    found = x.norms(x.candidate * x.scale)
    clearly = after * CLEARLY**2 <= min(before, float(found @ found))
    return Left(share, (clearly or bool((residual <= x.floor * size).all())) and _agrees(x, predicted))


def changed(x: Compared, predicted: Floats) -> Mask:
    """Entries that a prediction changes by more than their part of the floor."""
    found: Mask = x.counts & (np.abs(predicted - x.reference) > x.floor * x.rms)
    return found


def _agrees(x: Compared, predicted: Floats) -> bool:
    """Whether nearly all entries that a prediction changes are changed so in the candidate."""
    moved = changed(x, predicted)
    change = np.abs(predicted - x.reference)[moved]
    near = np.count_nonzero(np.abs(x.candidate - predicted)[moved] <= AGREE * change)
    return bool(near >= MOSTLY * change.size)


def cosine(x: Compared) -> float:
    """Cosine of the angle between the two, tokens scaled to one norm."""
    c, r = (x.candidate * x.scale).ravel(), (x.reference * x.scale).ravel()
    size = math.sqrt(float(c @ c) * float(r @ r))
    return float(c @ r) / size if size > 0 else 0.0
