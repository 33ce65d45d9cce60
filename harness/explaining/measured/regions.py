"""Where along an axis a change explains most of an error: over all ranges, and all ranges within each so many places.

An error is made of the changes at the places of an axis. How much of it a change at a set of places takes away, and by
which factor, follows from two things: how each place's change goes with the error, and how the places' changes go with
each other. Sums over all ranges come of running sums, so that every range is tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.pattern import Pattern, roundness

Floats = npt.NDArray[np.float64]

MOST = 1600
"""Places that are tried one by one; of more, neighbours go together."""

LITTLE = 0.1
"""What a change may leave of the squared error for the rest to be noise."""

AS_GOOD = 4.0
"""What a rounder range may leave more, in units of the noise that one place adds."""


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """How the changes at the places of an axis go with an error.

    Parameters
    ----------
    along
        The product of each place's change with the error [n].
    between
        The products of the places' changes with each other [n, n]; [n] where those of different places are 0.
    error
        The squared error.
    equations
        How many numbers the error is made of.
    factor
        By what each change is multiplied, if that is known; None for what fits best.
    """

    along: Floats
    between: Floats
    error: float
    equations: int
    factor: float | None = None

    def folded(self, period: int) -> Changes:
        """The same where the places of each so many are changed alike."""
        n = len(self.along)
        size = -(-n // period) * period
        along = np.pad(self.along, (0, size - n)).reshape(-1, period).sum(0)
        if self.between.ndim == 1:
            between = np.pad(self.between, (0, size - n)).reshape(-1, period).sum(0)
        else:
            wide = np.pad(self.between, ((0, size - n), (0, size - n)))
            between = wide.reshape(-1, period, size // period, period).sum((0, 2))
        return Changes(along, between, self.error, self.equations, self.factor)

    def together(self, size: int) -> Changes:
        """The same where so many neighbours each are changed together."""
        starts = np.arange(0, len(self.along), size)
        along, between = (np.add.reduceat(x, starts) for x in (self.along, self.between))
        return Changes(along, between, self.error, self.equations, self.factor)

    def twice(self) -> Changes:
        """The same with the axis once more behind its end."""
        between = np.tile(self.between, 2) if self.between.ndim == 1 else np.tile(self.between, (2, 2))
        return Changes(np.tile(self.along, 2), between, self.error, self.equations, self.factor)

    def over_ranges(self) -> tuple[Floats, Floats]:
        """The sums over each range [n + 1, n + 1] by its start and its stop: along the error, and among each other."""
        along = np.concatenate([[0.0], np.cumsum(self.along)])
        if self.between.ndim == 1:
            own = np.concatenate([[0.0], np.cumsum(self.between)])
            return along[None] - along[:, None], own[None] - own[:, None]
        sums = np.zeros((len(along), len(along)))
        np.cumsum(np.cumsum(self.between, 0), 1, out=sums[1:, 1:])
        corner = np.diagonal(sums)
        return along[None] - along[:, None], corner[None] + corner[:, None] - sums - sums.T

    def taken(self, along: Floats, between: Floats) -> Floats:
        """What a change takes of the squared error, by its products."""
        if self.factor is not None:
            return self.factor * (2 * along - self.factor * between)
        return np.where(between > 0, along**2 / np.where(between > 0, between, 1), 0.0)

    @property
    def most(self) -> float:
        """What the changes take of the squared error at most, wherever they are; all of it where places mix."""
        if self.between.ndim > 1:
            return self.error
        return float(np.maximum(self.taken(self.along, self.between), 0).sum())

    def of(self, pattern: Pattern) -> tuple[float, float]:
        """What the change at some places takes of the squared error, and by which factor."""
        at = pattern.among(len(self.along))
        along = float(self.along[at].sum())
        between = float(self.between[at].sum() if self.between.ndim == 1 else self.between[np.ix_(at, at)].sum())
        factor = self.factor if self.factor is not None else along / between if between > 0 else 0.0
        return float(self.taken(np.asarray(along), np.asarray(between))), factor


@dataclass(frozen=True, slots=True)
class Region:
    """Places, None for all, the factor of the change there, and what that leaves of the squared error."""

    places: Pattern | None
    factor: float
    left: float


def regions(changes: Changes, periods: Sequence[int] = (), *, listed: bool = True) -> Iterator[Region]:
    """The whole axis, the best range, the best part of each so many places, and the best single places if `listed`."""
    n = len(changes.along)
    if n == 0 or not np.isfinite(changes.along).all() or changes.error <= 0:
        return
    everywhere = Pattern.span(0, n)
    taken, factor = changes.of(everywhere)
    yield Region(None, factor, changes.error - taken)
    if n == 1:
        return
    yield _of(changes, _best_range(changes, n) if n <= MOST else _best_of_many(changes, n), n)
    for period in periods:
        if 1 < period < n and n > period:
            folded = changes.folded(period)
            pattern = _best_range(folded.twice(), period, period)
            if pattern is not None and not _is_all(pattern, period):
                yield _of(changes, pattern, n)
    if listed:
        yield from _listed(changes, n)


def _of(changes: Changes, pattern: Pattern | None, n: int) -> Region:
    pattern = pattern or Pattern.span(0, n)
    taken, factor = changes.of(pattern)
    return Region(None if _is_all(pattern, n) else pattern, factor, changes.error - taken)


def _is_all(pattern: Pattern, n: int) -> bool:
    return len(pattern.among(n)) == n


def _best_range(changes: Changes, n: int, period: int | None = None) -> Pattern | None:
    """The range that takes most of the error, the roundest of those that take as much up to noise."""
    taken = changes.taken(*changes.over_ranges())
    size = len(taken)
    length = np.arange(size)[None] - np.arange(size)[:, None]
    allowed = (length >= 1) & (length <= n)
    if period is not None:
        allowed &= np.arange(size)[:, None] < period
    taken = np.where(allowed, taken, -np.inf)
    most = float(taken.max())
    if not most > 0:
        return None
    # What a change leaves is noise only where it leaves little.
    left = max(changes.error - most, 0.0)
    noise = left / max(1, changes.equations) if left <= changes.error * LITTLE else 0.0
    near = np.argwhere(taken >= most - AS_GOOD * noise - 1e-12 * changes.error)
    start, stop = max(
        (tuple(map(int, at)) for at in near[:4096]),
        key=lambda at: (roundness(at[0], at[1], n) if period is None else roundness(at[0], at[1], period), taken[at]),
    )
    return Pattern.span(start, stop, period)


def _listed(changes: Changes, n: int) -> Iterator[Region]:
    """Single places that each take their part, where places do not mix."""
    if changes.between.ndim > 1 or n > MOST:
        return
    noise = changes.error / max(1, changes.equations)
    own = changes.taken(changes.along, changes.between)
    chosen = np.flatnonzero(own > max(AS_GOOD * noise, own.max() / 1e3))
    if 1 < len(chosen) < n:
        yield _of(changes, Pattern.of(chosen), n)


def _best_of_many(changes: Changes, n: int) -> Pattern | None:
    """The best range of more places than are tried one by one: of neighbours together, then its ends one by one."""
    if changes.between.ndim > 1:
        return None
    size = 1
    while n > MOST * size:
        size *= 2
    together = changes.together(size)
    found = _best_range(together, len(together.along))
    if found is None:
        return None
    ((start, stop),) = found.runs
    starts = np.arange(max(0, (start - 1) * size), min(n, (start + 1) * size) + 1)
    stops = np.arange(max(1, (stop - 1) * size), min(n, (stop + 1) * size) + 1)
    along, own = (np.concatenate([[0.0], np.cumsum(x)]) for x in (changes.along, changes.between))
    taken = changes.taken(along[stops][None] - along[starts][:, None], own[stops][None] - own[starts][:, None])
    taken = np.where(stops[None] > starts[:, None], taken, -np.inf)
    first, last = np.unravel_index(int(taken.argmax()), taken.shape)
    return Pattern.span(int(starts[first]), int(stops[last]))
