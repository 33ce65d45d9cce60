"""Which arithmetic a candidate uses, group by group, found from its own numbers over all layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.judging.arithmetic import HANDFUL, STRONG, Evidence, Fingerprint
from firstdiff.judging.arithmetic_attempts import Trial
from firstdiff.judging.arithmetic_composing import agreed, composed, held_alike, of_output
from firstdiff.judging.arithmetic_options import OPTIONS, option
from firstdiff.judging.arithmetic_phases import by_phase, stand_ins
from firstdiff.judging.arithmetic_trials import CACHE_STEPS, Trials
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.levels import Levels
from firstdiff.judging.needed import Wanted, run_trace
from firstdiff.model.arithmetic import F32, GGML, STORED
from firstdiff.model.engine import Model

CEILINGS = {"linear": 5e-2, "norm": 1e-2, "attention": 2e-2, "results": 1e-2}
"""Errors that an unknown arithmetic can have at most.

linear: quantised activations make up to 3.5e-2 on real ones. attention: bfloat16 operands make 4e-3, four times
that for sums kept in them too. norm, results: one store in bfloat16 is 4e-3. How a cache was rounded is known, or a
fault.
"""

ALONE = 5e-3
"""The same where a group has one point, which can be like no other: what operands in bfloat16 make."""

STANDS_OUT = 4.0
"""A site diverges from so many times the level that its point shows in the other layers."""

ALIKE = 10.0
"""An arithmetic's errors at the points of a group are within this factor of each other; a fault's are not."""

SHARE = 0.75
"""The share of a group's points that an arithmetic must fit, or show at."""

ROUNDING = 0.25
"""What a fault leaves of an error at most, once it is taken out: see
:func:`firstdiff.judging.systematic.rest`."""


TINY = 1e-12
"""An error that is as good as none."""

SAME = 1.05
"""Options whose errors are this near to each other are the same arithmetic on these numbers."""

F16_SUMS = 1.12, 2.24
"""Bounds of how much further a sum in f16 is from ours than from the exact one, if it errs by 0.5 to 2 times ours."""

PHASED = ("linear", "norm", "attention", "results")
"""Groups whose arithmetic may differ by the number of tokens of a step. What enters the cache is the same for all."""

MANY = 8
"""Layers of the later steps that are looked at, evenly spread: whether a kernel is another one shows at each."""

Tried = Mapping[str, Sequence[Trial]]
"""The trials of some steps, by group."""

LAYERS = 3
"""Layers from which a point has a level of its own."""


def fingerprint(model: Model, trace: Trace, alignment: Alignment, wanted: Wanted | None = None) -> Fingerprint:
    """Find the arithmetic of each group of operations, over all layers of the prompt (of the cache: of two steps).

    Steps of other numbers of tokens are looked at too: engines have a kernel for one token and another for many. With
    `wanted` it is found from these sites only.

    An arithmetic that is known, and fits most points, gives its own floor. Where none does, the errors of a group are
    taken for an unknown arithmetic if they look like one: at all its points alike, below a ceiling, and not what a
    fault makes of right numbers. The floor is then a few times the level that each point shows over all layers.
    """
    steps = stand_ins(trace.steps)
    layers = {model.hp.n_layer * i // MANY for i in range(MANY)}
    trials = Trials(F32, trace, alignment, frozenset(steps.values()), frozenset(layers))
    _run(model, trace, trials, wanted)
    tried = {step: trials.of_step(step) for step in steps.values()}
    cache = {group: _evidence(group, of) for group, of in trials.found.items() if group in ("keys", "values")}
    for found in tried.values():
        found |= {"attention": _with_cache(found.get("attention", []), cache)}
    evidence = {group: _evidence(group, of) for group, of in tried[0].items() if of} | cache
    first = _put_together(held_alike(agreed(evidence, tried[0].get("results", []))), tried[0])
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


def _later(first: Fingerprint, at_first: Tried, tried: Tried) -> Fingerprint:
    """The fingerprint of later steps: the first's own, but for groups that clearly are of another arithmetic there.

    What fits no arithmetic there either, and is like no unknown one, is a fault of these steps.
    """
    changed = {}
    for group in PHASED:
        known, trials = first.groups.get(group), tried.get(group, [])
        if known is None or not trials or (not known.level and _fits(known.name, trials)):
            continue
        other = _evidence(group, trials)
        tight = option(group, other.name).weights_and_results is None
        fits = other.fits and (tight or not known.level)  # the wide floor of a narrow store fits what is unknown too
        if fits or other.known or (other.level and not known.level):
            changed[group] = other
    if not changed:
        return first
    groups = held_alike(agreed(first.groups | changed, at_first.get("results", [])))
    return _put_together(groups, {**at_first, **{group: tried[group] for group in changed}})


def _fits(name: str, trials: Sequence[Trial]) -> bool:
    """Whether an option is at its floor at most points."""
    tried = [t for t in trials if name in t.errors]
    if len(tried) < SHARE * len(trials):
        return False
    return _share(tried, lambda part: median(t.errors[name] / t.floors[name] for t in part) <= 1) >= SHARE


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


def _evidence(group: str, trials: Sequence[Trial]) -> Evidence:
    """The option that leaves the least over all sites, and how sure that is."""
    names = dict.fromkeys((*OPTIONS[group], *(name for t in trials for name in t.errors)))
    tried = {name: [t for t in trials if name in t.errors] for name in names}
    most = min(SHARE * len(trials), max(map(len, tried.values())))
    options = [name for name, found in tried.items() if len(found) >= most]
    middle = {name: median(t.errors[name] for t in tried[name]) for name in options}
    least = min(middle.values())
    beyond = {name: sum(t.errors[name] > t.floors[name] for t in tried[name]) for name in options}
    name = min((n for n in options if middle[n] <= SAME * least), key=lambda n: beyond[n])  # the first of several
    if group == "embedding" and beyond.get("f32") == 0:  # a table that fits as the file has it needs no word
        name = "f32"
    same = tuple(n for n in options if n != name and middle[n] <= SAME * least)
    others = [n for n in options if n != name and n not in same]
    rivals = {n: _against(tried[n], n, name) for n in others}
    second = min(rivals, key=lambda n: rivals[n], default=None)
    evidence = Evidence(
        name=name,
        error=middle[name],
        runner_up=second,
        strength=np.inf if second is None else rivals[second],
        sites=len(trials),
        fits=_fits(name, tried[name]),
        same=same,
    )
    if evidence.fits:
        return evidence
    known = _most_at_floor(group, {n: len(tried[n]) - beyond[n] for n in options})
    if known is not None:  # an arithmetic, and faults at many sites
        return replace(evidence, name=known, error=middle[known], runner_up=None, strength=np.inf, same=(), known=True)
    if evidence.weak and "f32" in middle:  # none is nearer than the others: the exact one is to be measured against
        evidence = replace(evidence, name="f32", error=middle["f32"])
    return _unknown(group, evidence, tried[evidence.name])


def _most_at_floor(group: str, count: dict[str, int]) -> str | None:
    """The option at whose floor some sites are, and hardly any at another's; one that stores has too high a floor."""
    tight = {name: n for name, n in count.items() if option(group, name).weights_and_results is None}
    if not tight:
        return None
    best = max(tight, key=lambda name: tight[name])
    others = [n for n in tight.values() if n != tight[best]]
    return best if tight[best] >= max(HANDFUL, STRONG * max(others, default=0)) else None


def _against(trials: Sequence[Trial], rival: str, best: str) -> float:
    """How many times larger a rival's errors are, at the point that speaks most against it."""
    return max(
        median(t.errors[rival] for t in part) / max(median(t.errors.get(best, np.inf) for t in part), TINY)
        for part in _parts(trials).values()
    )


def _unknown(group: str, evidence: Evidence, trials: Sequence[Trial]) -> Evidence:
    """Evidence with a level, where what is left looks like an arithmetic's rounding and not like a fault."""
    name = evidence.name
    showing = [
        median(t.errors[name] for t in part)
        for part in _parts(trials).values()
        if median(t.errors[name] / t.floors[name] for t in part) > 1
    ]
    rests = [t.rests[name] for t in trials if name in t.rests]
    ceiling = CEILINGS.get(group, 0.0) if len(_parts(trials)) > 1 else min(ALONE, CEILINGS.get(group, 0.0))
    plausible = (
        len(showing) >= SHARE * len(_parts(trials))
        and max(showing) <= min(ceiling, ALIKE * min(showing))
        and median(rests) >= ROUNDING
    )
    if not plausible:
        return evidence
    return replace(evidence, level=True, ceiling=ceiling, like="f16-sums" if _of_f16_sums(trials) else None)


def _of_f16_sums(trials: Sequence[Trial]) -> bool:
    """Whether errors are as large as sums in f16 make them, in whatever order.

    Two such sums in different orders are root two times further from each other than from the exact one.
    """
    pairs = [(t.errors["f16-sums"], t.errors["f16-operands"]) for t in trials if "f16-sums" in t.errors]
    return bool(pairs) and F16_SUMS[0] <= median(a / b for a, b in pairs) <= F16_SUMS[1]


def _parts(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    parts: dict[str, list[Trial]] = {}
    for trial in trials:
        parts.setdefault(trial.part, []).append(trial)
    return parts


def _share(trials: Sequence[Trial], holds: Callable[[list[Trial]], bool]) -> float:
    """The share of points that something holds for."""
    parts = _parts(trials).values()
    return sum(holds(part) for part in parts) / len(parts)


def _levels(evidence: Evidence, trials: Sequence[Trial]) -> dict[str, float]:
    """The floor of each point that enough layers have: a few times their median, more where layers differ by nature.

    How much they differ is taken from the lower half, which no fault in a layer reaches.
    """
    levels = {}
    for part, found in _parts(trials).items():
        errors = sorted(t.errors[evidence.name] for t in found)
        if len(errors) >= LAYERS:
            middle = median(errors)
            spread = middle / max(errors[(len(errors) - 1) // 4], middle / STANDS_OUT)
            levels[part] = min(evidence.ceiling, middle * max(STANDS_OUT, spread**3))
    return levels
