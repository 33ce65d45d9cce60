"""Explanations: from the sites that diverge to the records of a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.explaining.attempt import Means
from firstdiff.explaining.budget import Budget
from firstdiff.explaining.collecting import Judged, at_hand, collect, surroundings
from firstdiff.explaining.conditions import Conditions
from firstdiff.explaining.counter_check import counter_check
from firstdiff.explaining.covering import PAIR_SEARCHES, Covering
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.telling import Telling
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.case import Case
from firstdiff.judging.layouts import Alignment
from firstdiff.model.engine import Model
from firstdiff.verdict import CounterCheck, Explanation, SiteVerdict, Status

Segment = tuple[str, ...] | bool
"""The points of a segment, or only whether there is one."""


@np.errstate(all="ignore")  # hypotheses run on a candidate's NaN and infinities too
def explain(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    sites: Sequence[SiteVerdict],
    *,
    failures: Failures,
    table: Mapping[str, Hypothesis] = TABLE,
    pairs: int = PAIR_SEARCHES,
    budget: Budget | None = None,
    only: Site | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[tuple[Explanation, ...], CounterCheck | None]:
    """Explain every site of a judged trace that diverges.

    Parameters
    ----------
    model, trace, found, alignment
        As the trace was judged with: `found` is its arithmetic.
    sites
        The sites judged.
    failures
        Notes the hypotheses that cannot be tried.
    table
        The hypotheses to try.
    pairs
        At how many sites pairs may be sought in vain.
    budget
        The time that the search may take; None for no end.
    only
        The one site to search: the others are held against what is found there. None for all.
    progress
        Called with what is being done.

    Returns
    -------
    The explanations in execution order, and the counter-check: the run replayed with all of them applied.
    """
    wanted = {s.site: s for s in sites if s.status is Status.DIVERGES}
    if not wanted:
        return (), None
    budget = budget or Budget()
    judged = Judged.of(model, trace, found, alignment, sites)
    scene = surroundings(judged)
    covering = Covering(Means(scene, table, failures, budget), pairs, only, progress)
    if not budget.over:
        _cover(covering, judged, wanted)
    order = {site: number for number, site in enumerate(wanted)}
    groups = covering.groups(order, [len(step.tokens) for step in trace.steps])
    check, hidden = counter_check(judged, scene, groups, failures)
    told = Telling(judged, covering, wanted, Conditions(judged))
    made = [told.explained(group, unseen) for group, unseen in zip(groups, hidden, strict=True)]
    made += told.not_explained({site for group in groups for site in group.at})
    made.sort(key=lambda e: order[e.site])
    return tuple(made), check


def _cover(covering: Covering, judged: Judged, wanted: Mapping[Site, SiteVerdict]) -> None:
    """Explain the cases that fit into memory together, then the others as they come by."""
    noise = _noise(judged.sites)

    def noted(case: Case) -> Case:
        segment = tuple(done.call.point for done in case.segment if done.call.point)
        known = noise.get((case.site.point, segment), noise.get((case.site.point, bool(segment)), case.floor))
        return replace(case, noise=min(known, case.floor))

    together = at_hand(wanted.values(), judged.trace)
    cases: list[Case] = []
    collect(judged, together, lambda case: cases.append(noted(case)))
    covering.together(cases)
    cases.clear()
    collect(judged, wanted.keys() - together, lambda case: covering.take(noted(case)))


def _noise(sites: Sequence[SiteVerdict]) -> dict[tuple[str, Segment], float]:
    """What each point's error is where it is right, over the same segment or any; elsewhere its floor is all there is.

    Keys are a point with the segment's points, and a point with whether there was a segment.
    """
    seen: dict[tuple[str, Segment], list[float]] = {}
    for s in sites:
        if s.status in (Status.AGREES, Status.INHERITS) and s.local_error is not None:
            segment = tuple(of.point for of in s.segment)
            for key in (segment, bool(segment)):
                seen.setdefault((s.point, key), []).append(s.local_error)
    # Codes of a segment's rounded activations flip at some sites and not at others: the largest error counts.
    return {key: max(errors) if key[1] else median(errors) for key, errors in seen.items()}
