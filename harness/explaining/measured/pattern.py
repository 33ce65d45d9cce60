"""Places along an axis that follow a simple rule: a range, a part of each so many, or a list of ranges."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]

_WRITTEN = re.compile(r"(?P<runs>\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)(?: of each (?P<period>\d+))?")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Runs of indices, each from its first to behind its last, within each `period` where there is one.

    It is written as people would: ``512-575``, ``3, 7-9``, ``64-127 of each 128``.
    """

    runs: tuple[tuple[int, int], ...]
    period: int | None = None

    @classmethod
    def span(cls, start: int, stop: int, period: int | None = None) -> Pattern:
        """One run; within a period one that goes beyond its end goes on at its beginning."""
        if period is not None and stop > period:
            return cls(((0, stop - period), (start, period)), period)
        return cls(((start, stop),), period)

    @classmethod
    def of(cls, indices: Iterable[int]) -> Pattern:
        """The runs of some indices."""
        runs: list[tuple[int, int]] = []
        for i in sorted(int(i) for i in indices):
            if runs and runs[-1][1] == i:
                runs[-1] = (runs[-1][0], i + 1)
            else:
                runs.append((i, i + 1))
        return cls(tuple(runs))

    @classmethod
    def read(cls, written: str) -> Pattern:
        """A pattern as it is written.

        Raises
        ------
        ValueError
            For what is no pattern.
        """
        match = _WRITTEN.fullmatch(written)
        if match is None:
            raise ValueError(f"{written!r} names no places: they are written as 512-575 or as 0-63 of each 128")
        runs = []
        for run in match["runs"].split(", "):
            first, _, last = run.partition("-")
            runs.append((int(first), int(last or first) + 1))
        return cls(tuple(runs), int(match["period"]) if match["period"] else None)

    def __str__(self) -> str:
        runs = ", ".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in self.runs)
        return runs if self.period is None else f"{runs} of each {self.period}"

    def among(self, n: int) -> Indices:
        """The indices below `n` that are meant."""
        at = np.arange(n)
        within = at if self.period is None else at % self.period
        chosen = np.zeros(n, np.bool_)
        for start, stop in self.runs:
            chosen |= (within >= start) & (within < stop)
        return np.flatnonzero(chosen)

    def fits(self, n: int) -> bool:
        """Whether an axis of `n` has all these places."""
        return self.runs[-1][1] <= (n if self.period is None else self.period)


def roundness(start: int, stop: int, n: int) -> int:
    """How round the ends of a range are: the powers of two that divide them; an end of the axis counts as round."""

    def of(i: int) -> int:
        return 20 if i in (0, n) else (i & -i).bit_length()

    return of(start) + of(stop)
