"""Explanations: from the sites that diverge to the records of a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, of_kind
from firstdiff.explaining.counter_check import counter_check
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.replay import PAIR_SEARCHES, Explaining, Group, Segment, Unexplained, replay
from firstdiff.explaining.search import Attempt
from firstdiff.explaining.telling_apart import separating
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.layouts import Alignment
from firstdiff.model.engine import Model
from firstdiff.verdict import CounterCheck, Explanation, SiteVerdict, Status, Tried
from firstdiff.verdict.ranges import enumerated, extent

SURELY = 10.0
"""What leaves more than this part of the error may be right by chance."""

SHOWN = 12  # hypotheses with their residuals that an explanation lists


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
    progress
        Called with what is being done.

    Returns
    -------
    The explanations in execution order, and the counter-check: the run replayed with all of them applied.
    """
    wanted = frozenset(s.site for s in sites if s.status is Status.DIVERGES)
    if not wanted:
        return (), None
    probe = Explaining(
        found.arithmetic,
        trace,
        alignment,
        found.levels,
        phases=found,
        model=model,
        wanted=wanted,
        noise=_noise(sites),
        table=table,
        failures=failures,
        pairs=pairs,
        progress=progress,
    )
    replay(model, trace, probe)
    made = [_explained(group, probe, trace) for group in probe.groups]
    made += list(_not_explained(probe.unexplained, model, trace))
    order = {s.site: number for number, s in enumerate(sites)}
    made.sort(key=lambda e: order[e.site])
    return tuple(made), counter_check(model, trace, probe, sites)


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


def _explained(group: Group, probe: Explaining, trace: Trace) -> Explanation:
    first, *others = group.faults
    known = {a.fault.id for a in group.faults}
    sites = [site for site, _, _ in group.cases]
    error = max(error for _, error, _ in group.cases)
    alone = [
        f"{a.fault.id} ({a.fault.says(probe.model)})"
        for a in group.tried
        if a.explains and a.fault.id not in known and len(a.fault.parts) == len(first.fault.parts)
    ]
    rest = sorted((a for a in group.tried if a.fault.id not in known and not a.explains), key=lambda a: a.residual)
    return Explanation(
        site=sites[0],
        sites=tuple(sites),
        extent=extent(sites, probe.model.hp.n_layer, len(trace.steps), _tokens(trace)),
        hypothesis=first.fault.id,
        says=first.fault.says(probe.model),
        fix=first.fault.fix(probe.model),
        attributes=first.fault.values,
        error=error,
        residual=first.residual,
        floor=max(floor for _, _, floor in group.cases),
        next_best=_told(rest[0], probe.model) if rest else None,
        equals=tuple(_told(a, probe.model) for a in others),
        separate=_separate(group, probe, trace) if others else None,
        note=_note(first, error, sites, alone, trace),
        tried=tuple(_told(a, probe.model) for a in sorted(group.tried, key=lambda a: a.residual)[:SHOWN]),
    )


def _tokens(trace: Trace) -> list[int]:
    return [len(step.tokens) for step in trace.steps]


def _separate(group: Group, probe: Explaining, trace: Trace) -> str | None:
    """What would tell the group's faults apart; None where one of them cannot be run for it."""
    faults = [a.fault for a in group.faults]
    with probe.failures.at(group.first.site, *(h for fault in faults for h in fault.hypotheses)):
        return separating(faults, group.first, probe.scene, trace)
    return None


def _note(first: Attempt, error: float, sites: Sequence[Site], alone: Sequence[str], trace: Trace) -> str | None:
    """How sure a fault is, what fits the first site `alone` as well, and why it may change no score."""
    notes = []
    if first.residual > error / SURELY:
        notes.append("the evidence is weak, because much of the difference is left; record more points between")
    if alone:
        notes.append(
            f"at {sites[0]} alone {enumerated(alone)} would fit as well, but not the same at all of these sites"
        )
    first_turned, *turned = [{(s.layer, s.step) for s in sites if s.point == point} for point in of_kind(Kind.ROTATION)]
    both = all(where == first_turned for where in turned)
    if both and {s.step for s in sites} == set(range(len(trace.steps))):
        notes += [h.harmless for h in first.fault.hypotheses if len(first.fault.parts) == 1 and h.harmless]
    return "; ".join(notes) or None


def _told(tried: Attempt, model: Model) -> Tried:
    return Tried(tried.fault.id, tried.fault.says(model), tried.residual)


def _not_explained(unexplained: Sequence[Unexplained], model: Model, trace: Trace) -> Iterator[Explanation]:
    """One record a point."""
    points = dict.fromkeys(case.site.point for case, _, _ in unexplained)
    for point in points:
        cases = [entry for entry in unexplained if entry[0].site.point == point]
        case, first, _ = cases[0]
        tried = first or []
        ranked = sorted(tried, key=lambda a: a.residual)
        sites = [c.site for c, _, _ in cases]
        searched = [(c.site, findings) for c, of, findings in cases if of is not None]
        count = len({a.fault.id for a in tried})
        says = f"not explained, because none of {count} hypotheses that apply gives these numbers"
        if len(searched) < len(sites):
            says += f" at {enumerated([str(site) for site, _ in searched])}, where all were tried"
        yield Explanation(
            site=case.site,
            sites=tuple(sites),
            extent=extent(sites, model.hp.n_layer, len(trace.steps), _tokens(trace)),
            hypothesis=None,
            says=says,
            fix="",
            attributes={},
            error=max(c.error for c, _, _ in cases),
            residual=None,
            floor=max(c.floor for c, _, _ in cases),
            next_best=_told(ranked[0], model) if ranked else None,
            findings=_findings(searched, len(sites)),
            tried=tuple(_told(a, model) for a in ranked[:SHOWN]),
        )


def _findings(searched: Sequence[tuple[Site, tuple[str, ...]]], sites: int) -> tuple[str, ...]:
    """What is found at all sites as it is; what is found at the first alone with its name."""
    (first, findings), *others = searched
    if sites == 1:
        return findings
    alike = len(searched) == sites
    return tuple(
        finding if alike and all(finding in of for _, of in others) else f"at {first}, {finding}"
        for finding in findings
    )
