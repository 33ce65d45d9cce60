"""A trace replayed in its own layouts and arithmetic: those that it states, or those that are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.explaining.arithmetic_or_fault import common_fault, has_faults
from firstdiff.explaining.collecting import Judged
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.judging import selections
from firstdiff.judging.arithmetic import Fingerprint, declared, fits
from firstdiff.judging.arithmetic_search import fingerprint
from firstdiff.judging.arithmetic_segments import of_segments
from firstdiff.judging.arithmetic_ties import untied
from firstdiff.judging.closeup import Details
from firstdiff.judging.layout_search import align
from firstdiff.judging.layouts import Alignment, stated
from firstdiff.judging.levels import Segment
from firstdiff.judging.needed import Wanted, run_trace
from firstdiff.judging.partial import Cut, rows_told
from firstdiff.judging.replay import Replay
from firstdiff.judging.segment_levels import segment_levels, told
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.model.probe import Change, unchanged
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.representatives import among, handful, misread, narrow, undecided
from firstdiff.verdict import SiteVerdict, Status

ROUNDS = 3
"""How often levels of segments are sought: scores, what attends by them, and what is behind that."""


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A trace's sites judged, and the arithmetic and layouts that they were judged in.

    `cut` are the tensors that have other rows than their step has tokens, `close` those where experts may have been
    others, and for how many tokens.
    """

    found: Fingerprint
    sites: list[SiteVerdict]
    alignment: Alignment
    cut: Mapping[Site, Cut] = field(default_factory=dict)
    close: Mapping[Site, int] = field(default_factory=dict)

    @property
    def diverging(self) -> int:
        """How many sites diverge."""
        return sum(s.status is Status.DIVERGES for s in self.sites)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how the trace was read."""
        chosen = selections.told(self.close)
        return (*rows_told(self.cut), *told(self.found.levels.segments), *chosen, *self.found.notes)


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
    return _levelled(
        model, _replayed(model, candidate, details, table, failures, progress), candidate, details, progress
    )


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
) -> Replayed:
    """Replay a candidate in its arithmetic, without levels of segments."""
    guess, noted = replayed_as_found(model, candidate, progress, details), Failures() if failures is None else failures
    judged = Judged.of(model, candidate, guess.found, guess.alignment, guess.sites)
    fault = common_fault(judged, failures=noted, table=table)
    again = None if fault is None else _as_found(model, candidate, progress, None, fault)
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
) -> Replayed:
    """Replay in the arithmetic that the trace declares, or in float32, or in what is found from the data.

    Layouts and arithmetic are found first, from a handful of layers where these decide; then each site is judged once.
    Where several arithmetics fit that handful, what diverges elsewhere may tell which it is.
    """
    done = _as_found(model, trace, progress, details)
    other = untied(model, trace, done.found, done.alignment, done.sites)
    return done if other is None else replayed_in(model, trace, other, done.alignment, progress, details)


def _as_found(
    model: Model, trace: Trace, progress: Progress, details: Details | None, changed: Change = unchanged
) -> Replayed:
    """Replay in the arithmetic that is stated, or found from calls as a fault has `changed` them."""
    layers = handful(trace)
    wanted = None if layers is None else among(trace, layers)
    found, alignment, done = _found(model, trace, wanted, progress, details, changed)
    if layers is None:
        return done or replayed_in(model, trace, found, alignment, progress, details)
    if left := undecided(found):
        found, alignment, _ = _found(model, trace, among(trace, layers, left), progress, details, changed)
        return replayed_in(model, trace, found, alignment, progress, details)
    done = replayed_in(model, trace, found, alignment, progress, details)
    if found.groups or fits(done.sites):
        return done
    # Other layers are not like the handful.
    found, alignment, done = _found(model, trace, None, progress, details, changed)
    return done or replayed_in(model, trace, found, alignment, progress, details)


def _found(
    model: Model,
    trace: Trace,
    wanted: Wanted | None,
    progress: Progress = QUIET,
    details: Details | None = None,
    changed: Change = unchanged,
) -> tuple[Fingerprint, Alignment, Replayed | None]:
    """Find layouts and arithmetic from the `wanted` sites; with these judged, or None where another guess was last.

    The arithmetic that the trace states is taken where it does, and else float32 where that does: `groups` are empty
    then. What was stored in a narrow dtype fits float32 for that alone, whatever it was computed in, so that it is
    looked at closely. In a trace that states its arithmetic layouts are sought only where something does not fit: it is
    mostly a recording of our own.
    """
    stands = declared(model, trace)
    first, alignment = Fingerprint(stands or F32), stated(trace)
    done: Replayed | None = None
    if stands is not None:
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
        found, alignment, _ = _found(model, trace, among(trace, layers, logits=logits))
        if not undecided(found):
            return found, alignment
    return _of_all_layers(trace, model)


@lru_cache(maxsize=8)
def _of_all_layers(trace: Trace, model: Model) -> tuple[Fingerprint, Alignment]:
    whole = replayed(model, trace)
    return whole.found, whole.alignment


def replayed_in(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    progress: Progress,
    details: Details | None,
    wanted: Wanted | None = None,
) -> Replayed:
    """Replay in a given arithmetic and given layouts, all sites or the `wanted` ones."""
    if details is not None:
        details.clear()
    probe = Replay.of(found, trace, alignment, details=details)
    probe.watch = progress.layers(model.hp.n_layer, len(trace.steps))
    run_trace(model, trace, probe, wanted)
    return Replayed(found, probe.settled(), alignment, probe.cut, probe.close)
