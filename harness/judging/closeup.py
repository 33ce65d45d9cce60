"""A closer look at a site: statistics, worst elements, error along each axis, histograms and a sample of pairs.

What a page shows of a site is measured here, while both tensors are at hand, and rounded so that it stays small.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Self

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import token_axis
from firstdiff.judging.measure import Real
from firstdiff.judging.rows import Mask
from firstdiff.verdict import Detail, Element, Histogram, Profile, Statistics, Status

BINS = 24  # of a histogram: the width of half a column of text
MOST_COUNTED = 1 << 16  # elements of a histogram: beyond, as many spread over the tensor, which changes no bar visibly

GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, spread evenly, whatever the strides of a tensor are (Knuth, volume 3, section 6.4)."""

SMALLEST = float(np.finfo(np.float64).tiny)
"""The smallest normal number: between two that are smaller, no bar has a width."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is kept of a site."""

    along: int  # values of a profile
    worst: int
    scatter: int


FULL, BRIEF = Size(64, 8, 100), Size(32, 3, 24)
"""Of a site that diverges, and of one that has little to show."""

MOST_FULL, MOST = 200, 6000
"""Sites that are kept in full, and at all: 400 bytes of a page each, 2.4 MB in all."""


@dataclass
class Details:
    """Collects details site by site: of the first of a trace, of all if they are not told, and of some that diverge."""

    first: frozenset[Site] | None = None
    taken: dict[Site, Detail] = field(default_factory=dict)
    _full: int = 0

    @classmethod
    def of(cls, trace: Trace) -> Self:
        """Details of so many sites as there is room for."""
        return cls(frozenset(trace.sites()[:MOST]))

    def clear(self) -> None:
        """Begin anew, as a replay does."""
        self.taken.clear()
        self._full = 0

    def take(
        self,
        site: Site,
        status: Status,
        candidate: Real,
        reference: Real,
        *,
        axes: tuple[str, ...],
        seen: Mask | None,
    ) -> None:
        """Measure a site, in full where it diverges."""
        full = status is Status.DIVERGES and self._full < MOST_FULL
        if full or self.first is None or site in self.first:
            self._full += full
            size = FULL if full else BRIEF
            self.taken[site] = measure_detail(candidate, reference, axes=axes, seen=seen, size=size)


def measure_detail(
    candidate: Real, reference: Real, *, axes: tuple[str, ...], seen: Mask | None = None, size: Size = FULL
) -> Detail:
    """Look closely at how two tensors differ.

    Parameters
    ----------
    candidate, reference
        Same shape.
    axes
        Names of their axes: see :func:`firstdiff.dumps.points.axes_of`.
    seen
        Entries that count, broadcastable to the shape; None for all.
    size
        How much is kept.
    """
    with np.errstate(all="ignore"):  # whatever numbers there are, they are looked at
        return _detail(np.asarray(candidate, np.float64), np.asarray(reference, np.float64), axes, seen, size)


def _detail(c: Real, r: Real, axes: tuple[str, ...], seen: Mask | None, size: Size) -> Detail:
    counts = np.ones(r.shape, np.bool_) if seen is None else np.broadcast_to(seen, r.shape)
    error = np.abs(_relative(c, r, counts, token_axis(axes)))  # [as the tensors]
    squares = error * error
    chosen = np.flatnonzero(counts)
    worst = _worst(error.ravel(), chosen, size.worst)
    pairs = _spread(chosen, size.scatter - len(worst))
    flat, other = c.ravel(), r.ravel()
    return Detail(
        shape=r.shape,
        axes=axes,
        candidate=_statistics(flat[chosen]),
        reference=_statistics(other[chosen]),
        worst=tuple(_element(flat, other, i, r.shape) for i in worst),
        profiles=tuple(_profile(name, axis, squares, counts, size.along) for axis, name in enumerate(axes)),
        histogram=_histogram(flat, other, _spread(chosen, MOST_COUNTED) if chosen.size > MOST_COUNTED else chosen),
        scatter=tuple((_rounded(flat[i], 3), _rounded(other[i], 3)) for i in (*worst, *pairs)),
    )


def _relative(c: Real, r: Real, counts: Mask, tokens: int) -> Real:
    """Each element's difference over its token's root mean square; infinite where a number is missing."""
    judged = counts & np.isfinite(r)
    delta = np.where(judged, c - r, 0)
    delta[np.isnan(delta)] = np.inf
    rest = tuple(i for i in range(r.ndim) if i != tokens)
    size = np.where(judged, r, 0)
    count = np.maximum(judged.sum(rest, keepdims=True), 1)
    rms = np.sqrt((size * size).sum(rest, keepdims=True) / count)
    scaled: Real = delta / rms
    scaled[np.isnan(scaled)] = 0  # 0 / 0
    return scaled


def _profile(name: str, axis: int, squares: Real, counts: Mask, most: int) -> Profile:
    rest = tuple(i for i in range(squares.ndim) if i != axis)
    errors = np.sqrt(squares.sum(rest) / np.maximum(counts.sum(rest), 1))
    size = len(errors)
    step = max(1, -(-size // most))
    binned = np.maximum.reduceat(errors, np.arange(0, size, step)) if size else errors
    return Profile(name, size, step, tuple(_rounded(x, 2) for x in binned))


def _worst(error: Real, chosen: Indices, most: int) -> list[int]:
    """Flat indices of the largest errors, the worst first; of equal ones the first."""
    errors = error[chosen]
    many = min(most, len(errors))
    if not many:
        return []
    found = np.argpartition(-errors, many - 1)[:many]
    ordered = sorted(found.tolist(), key=lambda i: (-errors[i], i))
    return [int(chosen[i]) for i in ordered if errors[i] > 0]


def _spread(chosen: Indices, most: int) -> list[int]:
    """At most so many of some indices, evenly spread."""
    if len(chosen) <= most:
        return [int(i) for i in chosen]
    places = (np.arange(1, max(most, 0) + 1) * GOLDEN % 1.0 * len(chosen)).astype(np.int64)
    return [int(i) for i in chosen[np.unique(places)]]


def _element(c: Real, r: Real, flat: int, shape: tuple[int, ...]) -> Element:
    index = tuple(int(i) for i in np.unravel_index(flat, shape))
    return Element(index, _rounded(c[flat], 8), _rounded(r[flat], 8))  # so that their difference can be taken


def _statistics(x: Real) -> Statistics:
    finite = x[np.isfinite(x)]
    missing = x.size - finite.size
    if not finite.size:
        return Statistics(0.0, 0.0, 0.0, 0.0, missing)
    rms = float(np.sqrt((finite * finite).mean()))
    mean, low, high = float(finite.mean()), float(finite.min()), float(finite.max())
    return Statistics(_rounded(mean, 4), _rounded(rms, 4), _rounded(low, 4), _rounded(high, 4), missing)


def _histogram(c: Real, r: Real, chosen: Indices | list[int]) -> Histogram | None:
    both = [x[chosen] for x in (c, r)]
    both = [x[np.isfinite(x)] for x in both]
    if not sum(x.size for x in both):
        return None
    low = _rounded(min(float(x.min()) for x in both if x.size), 3)
    high = _rounded(max(float(x.max()) for x in both if x.size), 3)
    if low / 2 == high / 2:
        half = max(abs(low), SMALLEST) / 2 if low else 0.5
        low, high = (low, low + half) if isfinite(low + half) else (low - half, low)
    bars = [_bars(x, low, high) for x in both]
    return Histogram(low, high, *bars)


def _bars(x: Real, low: float, high: float) -> tuple[int, ...]:
    """Elements a bin; the ends were rounded, and what lies just outside belongs to the outer bins."""
    part = (x / 2 - low / 2) / (high / 2 - low / 2)  # halves, since the difference of two numbers may be none
    bins = np.clip((part * BINS).astype(np.int64), 0, BINS - 1)
    return tuple(np.bincount(bins, minlength=BINS).tolist())


def _rounded(x: float, digits: int) -> float:
    rounded = float(f"{float(x):.{digits - 1}e}")
    return rounded if isfinite(rounded) else float(x)  # the largest numbers have none above them
