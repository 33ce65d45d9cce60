"""Which arithmetic a candidate uses, group by group, found from its own numbers over all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.judging.arithmetic import Evidence, Fingerprint
from firstdiff.judging.arithmetic_attempts import Trial
from firstdiff.judging.arithmetic_composing import agreed, alike, composed, held_alike, kept_wide, norms_held, of_output
from firstdiff.judging.arithmetic_evidence import LAYERS, STANDS_OUT, at_floor, evidence_of, parts_of, prevails
from firstdiff.judging.arithmetic_options import option
from firstdiff.judging.arithmetic_phases import by_phase, stand_ins
from firstdiff.judging.arithmetic_trials import CACHE_STEPS, Trials
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.levels import Levels
from firstdiff.judging.needed import Wanted
from firstdiff.judging.passes import run_trace
from firstdiff.model.arithmetic import F32, GGML, STORED
from firstdiff.model.engine import Model
from firstdiff.model.probe import Change, unchanged

PHASED = ("linear", "norm", "attention", "results")
"""Groups whose arithmetic may differ by the number of tokens of a step. What enters the cache is the same for all."""

MANY = 8
"""Layers of the later steps that are looked at, evenly spread: whether a kernel is another one shows at each."""

UNKNOWN = Evidence("f32", 0.0, None, np.inf, 0, fits=False)
"""The evidence for a group that tells nothing: a table of embeddings that is wrong."""

Tried = Mapping[str, Sequence[Trial]]
"""The trials of some steps, by group."""


def fingerprint(
    model: Model, trace: Trace, alignment: Alignment, wanted: Wanted | None = None, changed: Change = unchanged
) -> Fingerprint:
    """Find the arithmetic of each group of operations, over all layers of the prompt (of the cache: of two steps).

    Steps of other numbers of tokens are looked at too: engines have a kernel for one token and another for many. With
    `wanted` it is found from these sites only. Where a fault is known that all products have, `changed` makes their
    calls as the engine does.

    An arithmetic that is known, and fits most points, gives its own floor. Where none does, the errors of a group are
    taken for an unknown arithmetic if they look like one: at all its points alike, below a ceiling, and not what a
    fault makes of right numbers. The floor is then a few times the level that each point shows over all layers.
    """
    steps = stand_ins(trace.steps)
    layers = {model.hp.n_layer * i // MANY for i in range(MANY)}
    trials = Trials(F32, trace, alignment, frozenset(steps.values()), frozenset(layers), changed)
    _run(model, trace, trials, wanted)
    tried = {step: trials.of_step(step) for step in steps.values()}
    cache = {group: evidence_of(group, of) for group, of in trials.found.items() if group in ("keys", "values")}
    for found in tried.values():
        found |= {"attention": _with_cache(found.get("attention", []), cache)}
    evidence = {group: evidence_of(group, of) for group, of in tried[0].items() if of} | cache
    first = _put_together(_alike(evidence, tried[0]), tried[0])
    phases = {tokens: _later(first, tried[0], tried[step]) if step else first for tokens, step in steps.items()}
    return by_phase(first, phases)


def _run(model: Model, trace: Trace, trials: Trials, wanted: Wanted | None) -> None:
    """Run the steps that are tried, the first two in any case; of steps between them, what these need."""
    last = max((CACHE_STEPS - 1, *trials.steps))
    if last < CACHE_STEPS:
        run_trace(model, trace, trials, wanted, steps=CACHE_STEPS)
        return

    def tried(site: Site) -> bool:
        return (site.step in trials.steps or site.step < CACHE_STEPS) and (wanted is None or wanted(site))

    run_trace(model, trace, trials, tried, steps=last + 1)


def _put_together(groups: dict[str, Evidence], tried: Tried) -> Fingerprint:
    """The fingerprint of some steps: the arithmetic of all groups, and the levels of those that are unknown."""
    arithmetic = composed(groups, of_output(groups.get("linear"), tried.get("linear", [])))
    stored = arithmetic.weights_and_results  # by all operations, or by groups alone
    points: dict[str, float] = {}
    whole: dict[str, float] = {}
    for group, evidence in groups.items():
        if evidence.level:
            parts = _levels(evidence, [t for t in tried[group] if evidence.name in t.errors])
            points |= parts
            whole[group] = max(parts.values(), default=min(evidence.ceiling, STANDS_OUT * evidence.error))
        elif evidence.fits and group not in ("keys", "values") and evidence.base in {*STORED} - {stored}:
            whole[group] = STORED[evidence.base]
    return Fingerprint(arithmetic, groups, Levels(points, whole))


def regrouped(found: Fingerprint, changed: Mapping[str, str]) -> Fingerprint:
    """The same with some groups in arithmetics that are known otherwise, by the names of their options."""

    def of(phase: Fingerprint) -> Fingerprint:
        evidence = {g: replace(phase.groups.get(g, UNKNOWN), name=n, level=False) for g, n in changed.items()}
        groups = phase.groups | evidence
        arithmetic = composed(groups, phase.arithmetic.output)
        whole = {group: level for group, level in phase.levels.groups.items() if group not in evidence}
        stored = {*STORED} - {arithmetic.weights_and_results}
        whole |= {group: STORED[e.base] for group, e in evidence.items() if e.base in stored}
        points = phase.levels.points if evidence.keys().isdisjoint(phase.levels.groups) else {}
        levels = replace(phase.levels, points=points, groups=whole)
        return replace(phase, arithmetic=arithmetic, groups=groups, levels=levels)

    return replace(of(found), phases=tuple((tokens, of(phase)) for tokens, phase in found.phases))


def _later(first: Fingerprint, at_first: Tried, tried: Tried) -> Fingerprint:
    """The fingerprint of later steps: the first's own, but for groups that clearly are of another arithmetic there.

    What fits no arithmetic there either, and is like no unknown one, is a fault of these steps.
    """
    changed = {}
    for group in PHASED:
        known, trials = first.groups.get(group), tried.get(group, [])
        if known is None or not trials or (not known.level and at_floor(known.name, trials)):
            continue
        if known.known and prevails(known.name, trials):  # the same faults as in the first step
            continue
        other = evidence_of(group, trials)
        tight = option(group, other.name).weights_and_results is None
        fits = other.fits and (tight or not known.level)  # the wide floor of a narrow store fits what is unknown too
        if fits or other.known or (other.level and not known.level):
            changed[group] = other
    if not changed:
        return first
    of = {**at_first, **{group: tried[group] for group in changed}}
    return _put_together(_alike(first.groups | changed, of), of)


def _alike(groups: dict[str, Evidence], tried: Tried) -> dict[str, Evidence]:
    """Groups that say the same of the engine wherever numbers leave it open."""
    groups = norms_held(alike(kept_wide(groups, tried), tried), tried)
    return held_alike(agreed(groups, tried.get("results", [])))


def _with_cache(trials: Sequence[Trial], cache: dict[str, Evidence]) -> list[Trial]:
    """Trials of attention in which ggml's way is the one of the cache's types alone, with and without flash attention.

    It rounds queries by the type of the keys, and probabilities by that of the values.
    """
    kinds = {group: "" if evidence.name == "f32" else evidence.name for group, evidence in cache.items()}
    return [
        replace(
            t,
            errors=_of_ggml(t.errors, kinds.get("keys" if t.part == "kq" else "values", "f16")),
            floors=_of_ggml(t.floors, kinds.get("keys" if t.part == "kq" else "values", "f16")),
            rests=_of_ggml(t.rests, kinds.get("keys" if t.part == "kq" else "values", "f16")),
        )
        for t in trials
    ]


def _of_ggml(values: dict[str, float], kind: str) -> dict[str, float]:
    """Values by option, of ggml's only those of a type of cache, under the names of the plain ones."""
    kept = {name: value for name, value in values.items() if not name.startswith(GGML)}
    suffix = "" if kind == "f16" else f"+kv={kind}"
    for name in (GGML, f"{GGML}+flash"):
        if name + suffix in values:
            kept[name] = values[name + suffix]
    return kept


def _levels(evidence: Evidence, trials: Sequence[Trial]) -> dict[str, float]:
    """The floor of each point that enough layers have: a few times their median, more where layers differ by nature.

    How much they differ is taken from the lower half, which no fault in a layer reaches.
    """
    levels = {}
    for part, found in parts_of(trials).items():
        errors = sorted(t.errors[evidence.name] for t in found)
        if len(errors) >= LAYERS:
            middle = median(errors)
            spread = middle / max(errors[(len(errors) - 1) // 4], middle / STANDS_OUT)
            levels[part] = min(evidence.ceiling, middle * max(STANDS_OUT, spread**3))
    return levels
