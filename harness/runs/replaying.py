"""A trace replayed in its own layouts and arithmetic: those that it states, or those that are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from firstdiff.dumps import Trace
from firstdiff.explaining.arithmetic_or_fault import has_faults
from firstdiff.explaining.search import Failures
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.judging.arithmetic import Fingerprint, Levels, declared, fits
from firstdiff.judging.arithmetic_search import fingerprint
from firstdiff.judging.closeup import Details
from firstdiff.judging.floors import STORED
from firstdiff.judging.layout_search import align
from firstdiff.judging.layouts import Alignment, stated
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.progress import QUIET, Progress
from firstdiff.verdict import SiteVerdict, Status


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A trace's sites judged, and the arithmetic and layouts that they were judged in."""

    found: Fingerprint
    sites: list[SiteVerdict]
    alignment: Alignment


@np.errstate(all="ignore")
def replayed(
    model: Model,
    candidate: Trace,
    *,
    details: Details | None = None,
    table: Mapping[str, Hypothesis] = TABLE,
    failures: Failures | None = None,
    progress: Progress = QUIET,
) -> Replayed:
    """Replay a candidate in its arithmetic; at its own layers' level only where that hides no fault."""
    guess = replayed_as_found(model, candidate, progress, details)
    noted, found, alignment = Failures() if failures is None else failures, guess.found, guess.alignment
    if not found.levels or not has_faults(model, candidate, found, alignment, guess.sites, failures=noted, table=table):
        return guess
    found = replace(found, levels=Levels())
    return Replayed(found, _replay(model, candidate, found, alignment, progress, details), alignment)


def replayed_as_found(model: Model, trace: Trace, progress: Progress, details: Details | None = None) -> Replayed:
    """Replay in the arithmetic that the trace declares, or in float32, or in what is found from the data.

    Layouts and arithmetics are searched for only where the first guess does not do. What was stored in a narrow dtype
    fits float32 for that alone, whatever it was computed in: it is no guess that does.
    """
    stands = declared(model, trace)
    first = Fingerprint(stands or F32)
    alignment = stated(trace)
    sites = _replay(model, trace, first, alignment, progress, details)
    if _misread(sites, trace):
        other = align(model, trace, alignment)
        if other != alignment:
            alignment = other
            sites = _replay(model, trace, first, alignment, progress, details)
    if fits(sites) and (stands is not None or not _narrow(trace)):
        return Replayed(first, sites, alignment)
    found = fingerprint(model, trace, alignment)
    if stands is not None and not found.better:
        return Replayed(first, sites, alignment)
    if stands is not None and found.arithmetic != stands:
        found = replace(found, instead=stands.name)
    same = found.arithmetic == first.arithmetic and not found.levels
    sites = sites if same else _replay(model, trace, found, alignment, progress, details)
    return Replayed(found, sites, alignment)


def _narrow(trace: Trace) -> bool:
    """Whether most of a trace's sites were stored in fewer digits than float32 has."""
    narrow = [trace.dtype(site) in STORED for site in trace]
    return 2 * sum(narrow) > len(narrow)


def _replay(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    progress: Progress,
    details: Details | None,
) -> list[SiteVerdict]:
    if details is not None:
        details.clear()
    probe = Replay(found.arithmetic, trace, alignment, found.levels, details)
    probe.watch = progress.layers(model.hp.n_layer, len(trace.steps))
    for _ in model.forward(trace.steps, probe):
        pass
    return probe.sites


def _misread(sites: list[SiteVerdict], trace: Trace) -> bool:
    """Whether a point does not fit its shape, or its numbers at most of its layers, or is one the reference has not."""
    if {site.point for site in trace.sites()} - {site.point for site in sites}:
        return True
    if any(site.status is Status.NOT_COMPARABLE for site in sites):
        return True
    odd: dict[str, list[bool]] = {}
    for site in sites:
        if site.status is not Status.NOT_RECORDED:
            odd.setdefault(site.point, []).append(site.status is Status.DIVERGES)
    return any(2 * sum(values) > len(values) for values in odd.values())
