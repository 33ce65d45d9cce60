"""How small a fault a dump could have shown: what it means that nothing diverges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from firstdiff.dumps.errors import shown
from firstdiff.dumps.site import Site
from firstdiff.verdict.sites import SiteVerdict


class Fault(StrEnum):
    """A number that an engine may have wrong by any amount: a closed set."""

    NORM_EPSILON = "norm epsilon"
    ROPE_BASE = "rope base"
    SOFTMAX_SCALE = "softmax scale"
    MATRIX = "matrix"  # all weights of a product, by one factor
    WEIGHT = "weight"  # one weight of a product
    EMBEDDING = "embedding"  # its rows, by one factor


@dataclass(frozen=True, slots=True)
class Smallest:
    """The smallest change of a number, at one place, that would have been a divergence.

    Parameters
    ----------
    site
        The operation whose number is changed.
    share
        By how much it is larger, as a share of itself; of one weight as a share of its row's root mean square. Infinite
        where no change would have been seen.
    seen
        The site that would have diverged.
    element
        Row and column of the one weight, in the file's order; None for a fault that is not of one weight.
    """

    site: Site
    share: float
    seen: Site
    element: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What a dump could have shown of one kind of fault.

    Parameters
    ----------
    fault
        Which number is wrong, at one place.
    least, most
        The places, among those that were tried, where the smallest change is enough, and where it takes the largest;
        None where nothing was tried, and `most` where only one place was.
    tried
        How many places were tried.
    """

    fault: Fault
    least: Smallest | None
    most: Smallest | None
    tried: int


def misfit(told: Sequence[Sensitivity], verdict: str, sites: Sequence[SiteVerdict]) -> tuple[str, str] | None:
    """Say where, and how, what is told of faults does not fit a verdict and its sites; None where all fits.

    Only a pass says how small a fault would have shown, and at sites that it judged.
    """
    if told and verdict != "agrees":
        return "sensitivity", f"is told of a verdict that {verdict}"
    if len({s.fault for s in told}) < len(told):
        return "sensitivity", "holds a fault twice"
    known = {s.site for s in sites}
    judged = {s.site for s in sites if s.local_error is not None}
    for i, s in enumerate(told):
        wrong = _contradiction(s, known, judged)
        if wrong:
            return f"sensitivity[{i}]", wrong
    return None


def _contradiction(s: Sensitivity, known: set[Site], judged: set[Site]) -> str:
    places = [p for p in (s.least, s.most) if p is not None]
    if len(places) != min(s.tried, 2) or (s.least is None and s.most is not None):
        return f"tells {len(places)} places of {s.tried} that were tried"
    if any(not p.share > 0 for p in places) or places != sorted(places, key=lambda p: p.share):
        return "has shares that are not above 0, the least first"
    for p in places:
        if p.site not in known or p.seen not in judged:
            of = f"is of {shown(str(p.site))}, seen at {shown(str(p.seen))}"
            return f"{of}, of which one is not there or not judged"
        if (p.element is None) == (s.fault is Fault.WEIGHT):
            return f"has the element {p.element}, and is of a {s.fault}"
    return ""
