"""What is known of each group put together: groups that say the same of the engine, and one arithmetic of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from firstdiff.judging.arithmetic import Evidence
from firstdiff.judging.arithmetic_attempts import Trial
from firstdiff.judging.arithmetic_options import OPTIONS, option
from firstdiff.model.arithmetic import ARITHMETICS, F32, GGML, Arithmetic, arithmetic_named
from firstdiff.model.holding import ELEMENTS

WEIGHTS = ("linear", "norm", "embedding")
"""The groups of operations that read weights."""


def agreed(groups: dict[str, Evidence], results: Sequence[Trial]) -> dict[str, Evidence]:
    """Where numbers cannot tell two arithmetics apart, what else is known of the engine does.

    With weights in float32, ggml's products are any engine's, and with a cache in f16 its attention is that of
    operands in f16; the angles of its rotations are its own.
    """
    turned = [t for t in results if t.part in ("Qcur_rope", "Kcur_rope") and GGML in t.errors]
    like_ggml = all(t.errors[GGML] <= t.floors[GGML] for t in turned)
    linear, attention = groups.get("linear"), groups.get("attention")
    if linear is None or attention is None:
        return groups
    if GGML in linear.same and attention.name.startswith(GGML) and like_ggml:
        linear = linear.called(GGML)
    wanted = next((n for n in (linear.base, f"{GGML}+flash") if n in attention.same), None)
    if wanted is not None and (linear.base == GGML) == wanted.startswith(GGML):
        attention = attention.called(wanted)
    elif attention.name == GGML and linear.base != GGML and "f16-operands" in attention.same:
        attention = attention.called("f16-operands")
    return groups | {"linear": linear, "attention": attention}


def kept_wide(groups: dict[str, Evidence], tried: Mapping[str, Sequence[Trial]]) -> dict[str, Evidence]:
    """Take products that look as if they were kept in a narrow type for those of narrow operands, if nothing else is.

    The dump is in that type, and so were the operands; sums and gates are those of float32.
    """
    linear, results = groups.get("linear"), groups.get("results")
    stored = None if linear is None else option("linear", linear.base).weights_and_results
    if linear is None or results is None or stored is None or results.base != "f32" or stored in results.same:
        return groups
    name = linear.name.replace(linear.base, f"{stored}-operands", 1)
    at_floor = [sum(t.errors[n] <= t.floors[n] for t in tried["linear"] if n in t.errors) for n in (name, linear.name)]
    return groups | {"linear": linear.called(name)} if at_floor[0] >= at_floor[1] > 0 else groups


def alike(groups: dict[str, Evidence], tried: Mapping[str, Sequence[Trial]]) -> dict[str, Evidence]:
    """Take products, or attention, that fit nothing for those of the arithmetic that the other group is in.

    That is done where it leaves more of them at the floor, or none is at any: all are wrong then.
    """
    found = dict(groups)
    for group, other in (("linear", "attention"), ("attention", "linear")):
        own, its = groups.get(group), groups.get(other)
        if own is None or its is None or own.fits or own.known or own.level:
            continue
        name, trials = its.base, tried[group]
        if not (its.fits or its.known) or name not in OPTIONS[group]:
            continue
        now, then = (sum(n in t.fitting for t in trials) for n in (own.name, name))
        if its.weak and then < len(trials):
            continue
        if then > now or not any(t.fitting for t in trials):
            found[group] = replace(own, name=name)
    return found


def norms_held(groups: dict[str, Evidence], tried: Mapping[str, Sequence[Trial]]) -> dict[str, Evidence]:
    """Take norms that fit nothing for those of weights held as the matrices are, if more of them are right then.

    Where none is, biases tell: they are held as the norms are.
    """
    norm, linear = groups.get("norm"), groups.get("linear")
    if norm is None or linear is None or norm.fits or norm.known or linear.held not in ELEMENTS or linear.weak:
        return groups
    name = f"f32+held={linear.held}"
    now, then = (sum(n in t.fitting for t in tried["norm"]) for n in ("f32", name))
    if now or then:
        like = then > now
    else:
        told = [t.biases[linear.name] for t in tried["linear"] if linear.name in t.fitting and linear.name in t.biases]
        like = bool(told) and Counter(told).most_common(1)[0][0] == linear.held
    return groups | {"norm": replace(norm, name=name, known=True)} if like else groups


def composed(groups: dict[str, Evidence], output: str | None) -> Arithmetic:
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


def of_output(linear: Evidence | None, trials: Sequence[Trial]) -> str | None:
    """What the output matrix is held in: as the others, unless only something else fits there."""
    if linear is None:
        return None
    logits = [t for t in trials if t.site.layer is None]
    others = dict.fromkeys([linear.held, None, *(option("linear", name).output for t in logits for name in t.errors)])
    names = {kind: linear.base if kind is None else f"{linear.base}+held={kind}" for kind in others}
    fit = (k for k, n in names.items() if logits and all(t.errors.get(n, np.inf) <= t.floors.get(n, 0) for t in logits))
    return next(fit, linear.held if linear.held in ELEMENTS else None)


def held_alike(groups: dict[str, Evidence]) -> dict[str, Evidence]:
    """Say of all weights what some are held in, where the others' numbers are the same in it.

    A table of embeddings that fits nothing is a fault's, and one that fits as it is needs no word.
    """
    known = [groups[group] for group in WEIGHTS if group in groups]
    held = {e.held: None for e in known if e.held is not None and (e.fits or e.known)}
    alike = dict(groups)
    for group, evidence in groups.items():
        if group in WEIGHTS and (evidence.held is None or group == "embedding"):
            bases = (evidence.base, *(["tf32"] if evidence.base == "f16-operands" else []))  # they hardly differ
            names = (f"{base}+held={kind}" for base in bases for kind in held)
            name = next((name for name in names if name in evidence.same), None)
            alike[group] = evidence if name is None else evidence.called(name)
    embedding = alike.pop("embedding", None)
    stored = alike["linear"].base if "linear" in alike else None  # results in a narrow type are held in it anyway
    if embedding is not None and embedding.fits and embedding.held not in (None, stored):
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
