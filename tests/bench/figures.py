"""A figure of the benchmark: what was measured, beside what, and what it shall reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure shall reach: ``at most`` or ``at least`` a number, of its median or of its ratio."""

    text: str
    limit: float
    of_ratio: bool = True
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Parameters
    ----------
    name
        What was measured.
    ours, theirs
        One number a round, both of the same rounds; `theirs` of what stands beside, if anything.
    unit
        ``s``, ``GB/s`` or ``B``.
    beside
        What `theirs` is.
    aim
        What shall be reached, if anything.
    faster
        The ratio is theirs to ours (how much faster), and not ours to theirs (how many times its cost).
    """

    name: str
    ours: Sequence[float]
    unit: str = "s"
    beside: str = ""
    theirs: Sequence[float] = ()
    aim: Aim | None = None
    faster: bool = False

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round."""
        pairs = zip(self.ours, self.theirs, strict=True) if self.theirs else ()
        return [theirs / ours if self.faster else ours / theirs for ours, theirs in pairs]

    @property
    def reached(self) -> bool | None:
        """Whether the aim is; None where there is none, or no measurement."""
        values = self.ratios if self.aim is not None and self.aim.of_ratio else self.ours
        if self.aim is None or not values:
            return None
        found = median(values)
        return found >= self.aim.limit if self.aim.at_least else found <= self.aim.limit
