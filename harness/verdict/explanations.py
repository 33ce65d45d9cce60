"""Why sites diverge: what a verdict says of it, and the check that it is all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from firstdiff.dumps.site import Site


@dataclass(frozen=True, slots=True)
class Tried:
    """A hypothesis that was tried at a site, and what it leaves of the local error."""

    hypothesis: str
    says: str
    residual: float


@dataclass(frozen=True, slots=True)
class Series:
    """A quantity at some places of an axis, as it was measured, beside the right one.

    Parameters
    ----------
    quantity
        What it is: ``how often each input counts``.
    axis, places
        What the places are, and which: ``512-575``.
    measured, right
        One number a place.
    """

    quantity: str
    axis: str
    places: tuple[str, ...]
    measured: tuple[float, ...]
    right: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """The evidence of a statement that was measured.

    Parameters
    ----------
    numbers, unknowns
        How many of the candidate's numbers it accounts for, and how many were fitted to them.
    series
        What was measured, place by place; None where there is nothing to show.
    """

    numbers: int
    unknowns: int
    series: Series | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why sites diverge, or what can be said of them where no hypothesis fits.

    Parameters
    ----------
    site, sites
        The first of the sites, and all of them, in execution order.
    extent
        Where they are, in words: ``Qcur_rope and Kcur_rope at every layer``.
    hypothesis
        Its id, or two joined by `` + ``; None where none explains.
    says, fix
        What is wrong, and what to do, each in one phrase.
    attributes
        The parameters of the hypothesis.
    error, residual, floor
        The largest local error of the sites, what the hypothesis leaves of it at most, and the largest floor.
    next_best
        The best of the other hypotheses that does not explain, at the site searched, where it leaves less than half of
        the error.
    equals
        Hypotheses that explain as well: the data do not tell them apart.
    separate
        What would tell them apart.
    note
        What else is to be known.
    inside
        The tensors that the fault makes wrong before they reach the sites, in words, where they were not recorded:
        ``kq_soft_max at layer 3``. None where the fault is in the operations of the sites themselves.
    when
        Under which condition it shows, where the run tells: ``only in products over 1,536 inputs``.
    measured
        The evidence of what was measured; None for a hypothesis of the table.
    findings
        Where no hypothesis explains: what the difference looks like, the most useful first.
    tried
        The hypotheses tried at the site searched, least residual first.
    searched
        The site at which they were tried; None for the first.
    unsearched
        Sites whose search did not begin or did not end within the time that explaining may take.
    """

    site: Site
    sites: tuple[Site, ...]
    extent: str
    hypothesis: str | None
    says: str
    fix: str
    attributes: dict[str, Any]
    error: float
    residual: float | None
    floor: float
    next_best: Tried | None = None
    equals: tuple[Tried, ...] = ()
    separate: str | None = None
    note: str | None = None
    findings: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()
    searched: Site | None = None
    unsearched: tuple[Site, ...] = ()
    when: str | None = None
    measured: Measured | None = None
    inside: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A hypothesis that could not be tried at a site: a defect of firstdiff, and of no engine.

    Parameters
    ----------
    hypothesis
        Its id, or two joined by `` + ``.
    site
        Where it was tried.
    error
        The exception's type and message, in one line.
    """

    hypothesis: str
    site: Site
    error: str


@dataclass(frozen=True, slots=True)
class CounterCheck:
    """The run replayed with the explanations' changes made in the reference.

    Parameters
    ----------
    applied
        Ids of the hypotheses that were applied.
    left
        Sites that diverge all the same.
    judged
        Sites that agree then, and those of `left`; 0 where it is not known, as in a file of an earlier version.
    """

    applied: tuple[str, ...]
    left: tuple[Site, ...]
    judged: int = 0

    @property
    def agrees(self) -> bool:
        """Whether nothing is left."""
        return not self.left
