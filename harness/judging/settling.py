"""Settling what sites are said to be once all of them are judged: what is wrong before each of them counts too."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from firstdiff.dumps import Site
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.model.outline import Awaited, sources
from firstdiff.model.value import Value
from firstdiff.verdict import SiteVerdict, Status

BEHIND = "it reads rows of other tokens that were not recorded, and an operation before it is wrong: so may they be"


def settled(sites: Sequence[SiteVerdict]) -> list[SiteVerdict]:
    """The sites, of which none is accused of what may come from rows that were not recorded.

    Where something is wrong in an earlier layer, or earlier in the same, the rows that nobody recorded are wrong in
    the candidate as well, at whatever step.
    """
    wrong = [s for s in sites if s.status is Status.DIVERGES]
    first = min((_layer(s.site) for s in wrong), default=0)
    own = min((_layer(s.site) for s in wrong if not s.leans), default=first + 1)
    return [
        replace(s, status=Status.NOT_COMPARABLE, reason=BEHIND, leans=False)
        if s.leans and (_layer(s.site) > first or own <= _layer(s.site))
        else s
        for s in sites
    ]


def as_one(awaited: Iterable[Awaited], sites: Mapping[Site, SiteVerdict]) -> list[SiteVerdict]:
    """Sites that were judged by parts, each as if nothing before it were wrong, as one replay would have judged them.

    Parameters
    ----------
    awaited
        The outline of all steps.
    sites
        All of its sites.
    """
    wrong: dict[Value, bool] = {}
    found: list[SiteVerdict] = []
    for each in awaited:
        call = each.call
        before = any(wrong[source] for source in sources(call))
        diverges = False
        if call.point and call.step >= 0:
            found.append(_behind(sites[Site(call.step, call.layer, call.point)], wrong=before))
            diverges = found[-1].status is Status.DIVERGES
        wrong[each] = before or diverges
    return settled(found)


def _behind(s: SiteVerdict, *, wrong: bool) -> SiteVerdict:
    """What is said of a site where something before it is wrong, or nothing is."""
    if s.leans and wrong:
        return SiteVerdict(s.site, s.op, Status.NOT_COMPARABLE, inputs_right=False, reason=BEHIND)
    right = (Status.AGREES, Status.INHERITS)
    status = s.status if s.status not in right else Status.INHERITS if wrong else Status.AGREES
    return replace(s, status=status, inputs_right=not wrong)


def _layer(site: Site) -> int:
    """A site's layer; what comes before the layers has -1, and what comes behind them more than any."""
    return site.layer if site.layer is not None else -1 if kind_of(site.point) is Kind.EMBEDDING else sys.maxsize
