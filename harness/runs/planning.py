"""How a trace is to be replayed: the arithmetic and the layouts that it states, or that its numbers show."""

from __future__ import annotations

from dataclasses import replace

from firstdiff.dumps import Trace
from firstdiff.judging.arithmetic import Fingerprint, declared, fits
from firstdiff.judging.arithmetic_search import fingerprint
from firstdiff.judging.closeup import Details
from firstdiff.judging.layout_search import align
from firstdiff.judging.layouts import Alignment, stated
from firstdiff.judging.needed import Wanted
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.model.probe import Change, unchanged
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.replays import Plan, Replayed, replayed_in
from firstdiff.runs.representatives import among, handful, misread, narrow, undecided


def planned(
    model: Model, trace: Trace, progress: Progress, details: Details | None, changed: Change = unchanged
) -> Plan:
    """Find out how a trace is to be replayed first: as it states, or as a handful of its layers shows.

    Where a fault is known that all products have, `changed` makes their calls as the engine does.
    """
    layers = handful(trace)
    stands = declared(model, trace)
    if layers is not None and stands is not None and changed is unchanged:
        return Plan(trace, Fingerprint(stands), stated(trace), stated=True)
    wanted = None if layers is None else among(trace, layers)
    found, alignment, done = sought(model, trace, wanted, progress, details, changed)
    if layers is None:
        return Plan(trace, found, alignment, done, settled=True)
    if left := undecided(found):
        found, alignment, _ = sought(model, trace, among(trace, layers, left), progress, details, changed)
        return Plan(trace, found, alignment, settled=True)
    return Plan(trace, found, alignment)


def sought(
    model: Model,
    trace: Trace,
    wanted: Wanted | None,
    progress: Progress = QUIET,
    details: Details | None = None,
    changed: Change = unchanged,
    stood: Replayed | None = None,
) -> tuple[Fingerprint, Alignment, Replayed | None]:
    """Find layouts and arithmetic from the `wanted` sites; with these judged, or None where another guess was last.

    The arithmetic that the trace states is taken where it does, and else float32 where that does: `groups` are empty
    then. What was stored in a narrow dtype fits float32 for that alone, whatever it was computed in, so that it is
    looked at closely. In a trace that states its arithmetic layouts are sought only where something does not fit: it is
    mostly a recording of our own, which may have `stood` for a replay in it already.
    """
    stands = declared(model, trace)
    first, alignment = Fingerprint(stands or F32), stated(trace)
    done = stood
    if stands is not None and done is None:
        done = replayed_in(model, trace, first, alignment, progress, details, wanted)
    if done is None or misread(done.sites, [site for site in trace if wanted is None or wanted(site)]):
        other = align(model, trace, alignment, wanted, changed)
        if done is None or other != alignment:
            alignment, done = other, None
    if stands is not None or not narrow(trace):
        done = done or replayed_in(model, trace, first, alignment, progress, details, wanted)
        if fits(done.sites):
            return first, alignment, done
    found = fingerprint(model, trace, alignment, wanted, changed)
    if stands is not None and not found.better:
        first, done = (first, done) if (held := found.holding(stands)) is None else (held, None)
        return first, alignment, done
    if not found.levelled and {found.arithmetic, *(phase.arithmetic for _, phase in found.phases)} == {stands}:
        return first, alignment, done  # as the trace states
    if stands is not None and (found.arithmetic != stands or found.phases):
        found = replace(found, instead=stands.name)
    same = found.arithmetic == first.arithmetic and not found.levelled and not found.phases
    return found, alignment, replace(done, found=found) if same and done is not None else None
