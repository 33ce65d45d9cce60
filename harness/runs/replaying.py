"""A trace replayed in its own layouts and arithmetic: those that it states, or those that are found."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from firstdiff.dumps import Trace
from firstdiff.explaining.arithmetic_or_fault import common_fault, has_faults
from firstdiff.explaining.collecting import Judged
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.judging.arithmetic import Fingerprint, declared, fits
from firstdiff.judging.arithmetic_segments import of_segments
from firstdiff.judging.arithmetic_ties import untied
from firstdiff.judging.closeup import Details
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.levels import Segment
from firstdiff.judging.segment_levels import segment_levels
from firstdiff.model.engine import Model
from firstdiff.model.probe import Change
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.planning import planned, sought
from firstdiff.runs.replays import First, Replayed, replayed_in, run_passes
from firstdiff.runs.representatives import among, handful, undecided

ROUNDS = 3
"""How often levels of segments are sought: scores, what attends by them, and what is behind that."""


@np.errstate(all="ignore")
def replayed(
    model: Model,
    candidate: Trace,
    *,
    details: Details | None = None,
    table: Mapping[str, Hypothesis] = TABLE,
    failures: Failures | None = None,
    progress: Progress = QUIET,
    first: First | None = None,
) -> Replayed:
    """Replay a candidate in its arithmetic; at its own layers' level only where that hides no fault."""
    done = _replayed(model, candidate, details, table, failures, progress, first)
    return _levelled(model, done, candidate, details, progress)


def _levelled(model: Model, done: Replayed, candidate: Trace, details: Details | None, progress: Progress) -> Replayed:
    """Replay with levels of segments, where some are off alike at all layers; what is behind them shows only then."""
    levels: dict[Segment, float] = {}
    stated = declared(model, candidate) is not None and done.found.instead is None
    better = of_segments(model, candidate, done.found, done.alignment, done.sites, stated=stated)
    if better is not None:  # what whole layers show is known of all that they are computed by
        done, stated = replayed_in(model, candidate, better, done.alignment, progress, details), True
    for _ in range(ROUNDS):
        found = segment_levels(done.sites, stated=stated)
        more = {segment: level for segment, level in found.items() if segment not in levels}
        if not more:
            break
        levels |= more
        done = replayed_in(model, candidate, done.found.with_segments(levels), done.alignment, progress, details)
    return done


def _replayed(
    model: Model,
    candidate: Trace,
    details: Details | None,
    table: Mapping[str, Hypothesis],
    failures: Failures | None,
    progress: Progress,
    first: First | None,
) -> Replayed:
    """Replay a candidate in its arithmetic, without levels of segments."""
    guess = replayed_as_found(model, candidate, progress, details, first)
    noted = Failures() if failures is None else failures
    judged = Judged.of(model, candidate, guess.found, guess.alignment, guess.sites)
    fault = common_fault(judged, failures=noted, table=table)
    again = None if fault is None else _with(model, candidate, progress, fault)
    if (
        again is not None
        and again.alignment.described() != guess.alignment.described()
        and not _is_better(again, guess)
    ):
        # What is wrong with products may hide the arithmetic that other ones show.
        again = replayed_in(model, candidate, guess.found, again.alignment, progress, None)
    if again is not None and _is_better(again, guess):
        if details is None:
            return again
        return replayed_in(model, candidate, again.found, again.alignment, progress, details)
    if not guess.found.levelled or not has_faults(judged, failures=noted, table=table):
        return guess
    return replayed_in(model, candidate, guess.found.tight, guess.alignment, progress, details)


def _with(model: Model, candidate: Trace, progress: Progress, fault: Change) -> Replayed:
    """Replay a candidate in what is found from calls as a fault has changed them."""
    plan = planned(model, candidate, progress, None, fault)
    done = plan.done or replayed_in(model, candidate, plan.found, plan.alignment, progress, None)
    if plan.settled or plan.found.groups or fits(done.sites):
        return done
    found, alignment, other = sought(model, candidate, None, progress, None, fault)
    return other or replayed_in(model, candidate, found, alignment, progress, None)


def _is_better(again: Replayed, guess: Replayed) -> bool:
    """Whether what was found with a known fault is something else, and accuses no more sites."""
    arithmetic = again.found.knows_products and again.found.arithmetic != guess.found.arithmetic
    other = arithmetic or again.alignment.described() != guess.alignment.described()
    return other and again.diverging <= guess.diverging


def replayed_as_found(
    model: Model,
    trace: Trace,
    progress: Progress = QUIET,
    details: Details | None = None,
    first: First | None = None,
) -> Replayed:
    """Replay in the arithmetic that the trace declares, or in float32, or in what is found from the data.

    Layouts and arithmetic are found first, from a handful of layers where these decide; then each site is judged once.
    Where several arithmetics fit that handful, what diverges elsewhere may tell which it is. The `first` replay may
    have been made already.
    """
    if first is None:
        first = First(planned(model, trace, progress, details), details)
        run_passes(model, first.passes(model), progress)
    done = _as_found(model, first, progress, details)
    other = untied(model, trace, done.found, done.alignment, done.sites)
    return done if other is None else replayed_in(model, trace, other, done.alignment, progress, details)


def _as_found(model: Model, first: First, progress: Progress, details: Details | None) -> Replayed:
    """What was found, where the first replay bears it out; or what is found of all layers."""
    plan, done = first.plan, first.done
    trace, found, alignment = plan.trace, plan.found, plan.alignment
    if plan.settled:
        return done
    layers = handful(trace)
    if plan.stated and layers is not None:
        wanted = among(trace, layers)
        found, alignment, _ = sought(model, trace, wanted, progress, details, stood=done.among(wanted))
        if left := undecided(found):
            found, alignment, _ = sought(model, trace, among(trace, layers, left), progress, details)
            return replayed_in(model, trace, found, alignment, progress, details)
        if found != plan.found or alignment != plan.alignment:
            done = replayed_in(model, trace, found, alignment, progress, details)
    if found.groups or fits(done.sites):
        return done
    # Other layers are not like the handful.
    found, alignment, other = sought(model, trace, None, progress, details)
    return other or replayed_in(model, trace, found, alignment, progress, details)


def understood(model: Model, trace: Trace, *, logits: bool = False) -> tuple[Fingerprint, Alignment]:
    """Find the arithmetic and the layouts of a trace, from a handful of its layers where these decide.

    They are those of :func:`replayed`, which is asked where a handful of layers says too little. What was last found of
    a trace is kept.

    Parameters
    ----------
    model, trace
        The model's file, and a trace made with it.
    logits
        Whether the layout of the logits is asked for, whose product takes longer than a layer.
    """
    return _understood(trace, model, logits=logits)


@lru_cache(maxsize=8)  # one investigation asks for many sites of a trace
def _understood(trace: Trace, model: Model, *, logits: bool) -> tuple[Fingerprint, Alignment]:
    layers = handful(trace)
    if layers is not None:
        found, alignment, _ = sought(model, trace, among(trace, layers, logits=logits))
        if not undecided(found):
            return found, alignment
    return _of_all_layers(trace, model)


@lru_cache(maxsize=8)
def _of_all_layers(trace: Trace, model: Model) -> tuple[Fingerprint, Alignment]:
    whole = replayed(model, trace)
    return whole.found, whole.alignment
