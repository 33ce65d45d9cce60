"""Which arithmetic a candidate uses, group by group, found from its own numbers over all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from firstdiff.dumps import Trace
from firstdiff.judging.arithmetic import HANDFUL, STRONG, Evidence, Fingerprint, Levels
from firstdiff.judging.arithmetic_options import OPTIONS, option
from firstdiff.judging.arithmetic_trials import Trial, Trials
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.needed import Wanted, run
from firstdiff.model.arithmetic import ARITHMETICS, F32, GGML, STORED, Arithmetic, arithmetic_named
from firstdiff.model.engine import Model
from firstdiff.model.holding import ELEMENTS

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

WEIGHTS = ("linear", "norm", "embedding")
"""The groups of operations that read weights."""

LAYERS = 3
"""Layers from which a point has a level of its own."""


def fingerprint(model: Model, trace: Trace, alignment: Alignment, wanted: Wanted | None = None) -> Fingerprint:
    """Find the arithmetic of each group of operations, over all layers of the prompt (of the cache: of two steps).

    With `wanted` it is found from these sites only.

    An arithmetic that is known, and fits most points, gives its own floor. Where none does, the errors of a group are
    taken for an unknown arithmetic if they look like one: at all its points alike, below a ceiling, and not what a
    fault makes of right numbers. The floor is then a few times the level that each point shows over all layers.
    """
    trials = Trials(F32, trace, alignment)
    run(model, trace.steps[:2], trials, wanted)
    cache = {group: _evidence(group, tried) for group, tried in trials.found.items() if group in ("keys", "values")}
    trials.found |= {"attention": _with_cache(trials.found.get("attention", []), cache)}
    found = {group: _evidence(group, tried) for group, tried in trials.found.items() if tried}
    groups = _held_alike(_agreed(found | cache, trials.found.get("results", [])))
    arithmetic = _composed(groups, _of_output(groups.get("linear"), trials.found.get("linear", [])))
    stored = arithmetic.weights_and_results  # by all operations, or by groups alone
    points: dict[str, float] = {}
    whole: dict[str, float] = {}
    for group, evidence in groups.items():
        if evidence.level:
            parts = _levels(evidence, [t for t in trials.found[group] if evidence.name in t.errors])
            points |= parts
            whole[group] = max(parts.values(), default=min(evidence.ceiling, STANDS_OUT * evidence.error))
        elif evidence.fits and group not in ("keys", "values") and evidence.base in {*STORED} - {stored}:
            whole[group] = STORED[evidence.base]
    return Fingerprint(arithmetic, groups, Levels(points, whole))


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
    options = [name for name, found in tried.items() if len(found) >= SHARE * len(trials)]
    middle = {name: median(t.errors[name] for t in tried[name]) for name in options}
    least = min(middle.values())
    beyond = {name: sum(t.errors[name] > t.floors[name] for t in tried[name]) for name in options}
    name = min((n for n in options if middle[n] <= SAME * least), key=lambda n: beyond[n])  # the first of several
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
        fits=_share(tried[name], lambda part: median(t.errors[name] / t.floors[name] for t in part) <= 1) >= SHARE,
        same=same,
    )
    if evidence.fits:
        return evidence
    known = _most_at_floor(group, {n: len(tried[n]) - beyond[n] for n in options})
    if known is not None:  # an arithmetic, and faults at many sites
        return replace(evidence, name=known, error=middle[known], runner_up=None, strength=np.inf, same=(), known=True)
    if evidence.weak:  # none is nearer than the others: the exact one is the one to measure against
        evidence = replace(evidence, name="f32", error=middle["f32"])
    return _unknown(group, evidence, tried[evidence.name])


def _most_at_floor(group: str, count: dict[str, int]) -> str | None:
    """The option at whose floor some sites are, and hardly any at another's; one that stores has too high a floor."""
    tight = {name: n for name, n in count.items() if option(group, name).weights_and_results is None}
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


def _agreed(groups: dict[str, Evidence], results: Sequence[Trial]) -> dict[str, Evidence]:
    """Where numbers cannot tell two arithmetics apart, what else is known of the engine does.

    With weights in float32, ggml's products are any engine's, and with a cache in f16 its attention is that of
    operands in f16; the angles of its rotations are its own.
    """
    turned = [t for t in results if t.part in ("Qcur_rope", "Kcur_rope")]
    like_ggml = all(t.errors[GGML] <= t.floors[GGML] for t in turned)
    linear, attention = groups.get("linear"), groups.get("attention")
    if linear is None or attention is None:
        return groups
    if GGML in linear.same and attention.name.startswith(GGML) and like_ggml:
        linear = linear.called(GGML)
    wanted = next((n for n in (linear.name, f"{GGML}+flash") if n in attention.same), None)
    if wanted is not None and (linear.name == GGML) == wanted.startswith(GGML):
        attention = attention.called(wanted)
    elif attention.name == GGML and linear.name != GGML and "f16-operands" in attention.same:
        attention = attention.called("f16-operands")
    return groups | {"linear": linear, "attention": attention}


def _composed(groups: dict[str, Evidence], output: str | None) -> Arithmetic:
    """The arithmetic of all groups together, named so that it can be read back; `output` is what that is held in."""
    best = {group: option(group, evidence.name) for group, evidence in groups.items()}
    linear = best.get("linear", F32)
    attention = best.get("attention", linear)  # an engine of one piece, as far as is known
    stored = linear.weights_and_results
    keys = best["keys"].keys if "keys" in best else attention.keys
    values = best["values"].values if "values" in best else attention.values
    operands = None if stored else attention.attention
    base = next(
        (a for a in ARITHMETICS.values() if (a.products, a.attention, a.weights_and_results, a.dtype)
         == (linear.products, operands, stored, np.float32)),
        None,
    )  # fmt: skip
    parts = []
    if base is None:
        base = F32
        said = (("products", linear.products), ("attention", operands), ("stored", stored))
        parts = [f"{part}={kind}" for part, kind in said if kind is not None]
    parts += ["flash"] if attention.flash else []
    parts += [
        f"{part}={kind or 'f32'}"
        for part, kind, own in (("keys", keys, base.keys), ("values", values, base.values))
        if kind != own
    ]
    return arithmetic_named("+".join([base.name, *parts, *_held(best, output)]))


def _of_output(linear: Evidence | None, trials: Sequence[Trial]) -> str | None:
    """What the output matrix is held in: as the others, unless only something else fits there."""
    if linear is None:
        return None
    logits = [t for t in trials if t.site.layer is None]
    others = dict.fromkeys([linear.held, None, *(option("linear", name).output for t in logits for name in t.errors)])
    names = {kind: linear.base if kind is None else f"{linear.base}+held={kind}" for kind in others}
    fit = (k for k, n in names.items() if logits and all(t.errors.get(n, np.inf) <= t.floors.get(n, 0) for t in logits))
    return next(fit, linear.held if linear.held in ELEMENTS else None)


def _held_alike(groups: dict[str, Evidence]) -> dict[str, Evidence]:
    """Say of all weights what some are held in, where the others' numbers are the same in it.

    A table of embeddings that fits nothing is a fault's, and one that fits as it is needs no word.
    """
    held = {e.held: None for e in groups.values() if e.held is not None and (e.fits or e.known)}
    alike = dict(groups)
    for group, evidence in groups.items():
        if group in WEIGHTS and evidence.held is None:
            name = next((n for kind in held if (n := f"{evidence.base}+held={kind}") in evidence.same), None)
            alike[group] = evidence if name is None else evidence.called(name)
    embedding = alike.pop("embedding", None)
    if embedding is not None and embedding.fits and embedding.held is not None:
        alike["embedding"] = embedding
    return alike


def _held(best: dict[str, Arithmetic], output: str | None) -> list[str]:
    """What weights are held in, as parts of a name; weights of which nothing is known as the matrices are."""
    matrices = best["linear"].matrices if "linear" in best else None
    like = matrices if matrices in ELEMENTS else None
    found = {"matrices": matrices, "norms": best["norm"].norms if "norm" in best else like, "output": output}
    found["embedding"] = best["embedding"].embedding if "embedding" in best else None
    if set(found.values()) <= {*ELEMENTS} and len(set(found.values())) == 1:
        return [f"held={matrices}"]
    return [f"{part}={kind}" for part, kind in found.items() if kind is not None]
