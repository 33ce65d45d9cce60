"""The softmax gone wrong: its factor, its mask, and what it divides by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstdiff.hypotheses.fitting import Numbers
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, with_op
from firstdiff.hypotheses.where import SOFTMAX
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import looked_at, visible
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

SMALLEST = 1e-30  # of probabilities that float32 holds to all its digits

PADDED = 256  # llama.cpp pads the keys of plain attention to a multiple of it


LEAST_SCALE, LEAST_CAP = 1e-4, 0.01
"""What scores are multiplied by, or capped at, at least: less leaves all of them alike, as many a fault does."""


def _scale(call: Call, _scene: Scene, values: Values) -> Call | None:
    return call.with_arguments(scale=values["scale"]) if abs(values["scale"]) >= LEAST_SCALE else None


def _scales(call: Call, scene: Scene) -> Iterator[float]:
    hp, heads = scene.model.hp, len(call.argument("kq"))
    yield from (1 / hp.head_dim, hp.n_embd**-0.5, max(1, hp.n_embd // heads) ** -0.5)
    yield from ((2 * hp.head_dim) ** -0.5, (hp.head_dim / 2) ** -0.5, hp.head_dim**0.5, 0.125)


def _scale_starts(call: Call, scene: Scene, observed: Array) -> Iterator[float]:
    """The listed ones, and the slope of log-probabilities over scores."""
    yield from _scales(call, scene)
    kq, p = np.asarray(call.argument("kq"), np.float64), np.asarray(observed, np.float64)
    known = p > SMALLEST
    count = np.maximum(known.sum(-1, keepdims=True), 1)
    z, y = (
        np.where(known, x - np.where(known, x, 0.0).sum(-1, keepdims=True) / count, 0.0)
        for x in (kq, np.log(np.maximum(p, SMALLEST)))
    )
    if power := float((z * z).sum()):
        yield float((z * y).sum()) / power


def _named_scales(call: Call, _scene: Scene) -> Iterator[float]:
    own = call.argument("scale")
    yield from (own, 1.0, own * float(np.log(2)))


def _softmax(
    kq: Array,
    sinks: Weight | None = None,
    *,
    scale: float,
    arithmetic: Arithmetic,
    offset: int = 0,
    cap: float | None = None,
    sink: float | None = None,
    padding: int = 0,
    highest: bool = True,
    axis: int = -1,
    divide: bool = True,
    mask: Array | None = None,
) -> Array:
    """A softmax with one thing about it changed: see the hypotheses below."""
    with np.errstate(all="ignore"):
        wide: Array = kq.astype(np.float64 if highest else np.float32)
        z = wide * wide.dtype.type(scale)
        if cap is not None:
            z = cap * np.tanh(z / cap)
        if mask is None:
            z[:, ~visible(kq.shape[-2], kq.shape[-1], offset)] = -np.inf
        else:
            z = z + mask
        top = z.max(axis, keepdims=True) if highest else 0.0
        p = np.exp(z - top)
        total = p.sum(axis, keepdims=True, dtype=np.float64)
        for each in (sink, None if sinks is None else sinks.values().reshape(-1, 1, 1)):
            total = total if each is None else total + np.exp(each - top)
        total = total + padding * np.exp(-top)
        return arithmetic.widen(np.asarray(p / total if divide else p))


def _cap(call: Call, _scene: Scene, values: Values) -> Call | None:
    if values["cap"] < LEAST_CAP or call.argument("cap") is not None:
        return None
    return with_op(call, _softmax, cap=values["cap"])


def _other_cap(call: Call, _scene: Scene, values: Values) -> Call | None:
    right, cap = call.argument("cap"), values["cap"]
    # What is far above the scores is no cap: "softcap-missing".
    return None if right is None or not 0 < cap <= 8 * right else call.with_arguments(cap=cap)


def _caps(call: Call, scene: Scene) -> tuple[float, ...]:
    """Gemma 2 caps scores at 50 and logits at 30: one may be taken for the other."""
    return tuple(c for right in _right_cap(call, scene) for c in (right * 30 / 50, right * 50 / 30, 30.0, 50.0))


def _right_cap(call: Call, _scene: Scene) -> tuple[float, ...]:
    return () if call.argument("cap") is None else (float(call.argument("cap")),)


def _sink(call: Call, _scene: Scene, values: Values) -> Call:
    return with_op(call, _softmax, sink=values["sink"])


def _padding(call: Call, _scene: Scene, values: Values) -> Call | None:
    return with_op(call, _softmax, padding=values["keys"])


def _paddings(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    """What engines pad keys to a multiple of, and the number that was observed."""
    keys = call.argument("kq").shape[-1]
    padded = [extra for multiple in (PADDED, 128, 64, 32) if (extra := -keys % multiple)]
    if observed is not None and scene.later is None and (seen := _padding_seen(call, observed)) > 0:
        padded.insert(0, seen)
    yield from ({"keys": extra} for extra in dict.fromkeys(padded))


def _padding_seen(call: Call, observed: Array) -> int:
    """How many terms of exp(0) the denominators have too many: each row tells, the one of low scores best."""
    z = np.asarray(call.argument("kq"), np.float64) * call.argument("scale")
    z[~np.broadcast_to(looked_at(z.shape, call.argument("mask")), z.shape)] = -np.inf
    with np.errstate(all="ignore"):
        terms = np.exp(z)
        total, left = terms.sum(-1), np.asarray(observed, np.float64).sum(-1)
        row = np.unravel_index(int(np.argmin(np.where(left > 0, total, np.inf))), total.shape)
        seen = float(total[row] / left[row] - total[row])
    return round(seen) if 0 < seen < 1e9 else 0  # noqa: PLR2004 - what an int holds, and no context does


def _axis(call: Call, _scene: Scene, values: Values) -> Call | None:
    axis = {"queries": -2, "heads": 0}[values["axis"]]
    return with_op(call, _softmax, axis=axis) if call.argument("kq").shape[axis] > 1 else None


TABLE = (
    Hypothesis(
        "scale-missing",
        SOFTMAX,
        "scores without their factor 1 / sqrt(head_dim)",
        "multiply scores by 1 / sqrt(head_dim) before the softmax",
        lambda call, _scene, _values: call.with_arguments(scale=1.0),
        stage=4,
        source="mlc-ai/mlc-llm#3426",
    ),
    Hypothesis(
        "softmax-base-2",
        SOFTMAX,
        "powers of 2 in place of e",
        "multiply scores by log2(e) where exp2 is used",
        lambda call, _scene, _values: call.with_arguments(scale=call.argument("scale") * float(np.log(2))),
        stage=4,
    ),
    Hypothesis(
        "scale-wrong",
        SOFTMAX,
        "scores multiplied by another factor than 1 / sqrt(head_dim)",
        "multiply scores by 1 / sqrt(head_dim)",
        _scale,
        Numbers(_scale, "scale", _scales, starts=_scale_starts, without=_named_scales),
        "scores multiplied by {scale:.6g} in place of 1 / sqrt(head_dim)",
        stage=4,
        source="antonellof/ferrox#40",
    ),
    Hypothesis(
        "softcap-added",
        SOFTMAX,
        "a soft cap that the file does not have",
        "cap scores only where the file has 'attn_logit_softcapping'",
        _cap,
        Numbers(_cap, "cap", lambda _c, _s: (50.0, 30.0, 5.0)),
        "scores soft-capped at {cap:.6g}",
        stage=6,
        source="vllm-project/vllm-metal#665",
    ),
    Hypothesis(
        "softcap-missing",
        SOFTMAX,
        "scores without the soft cap that the file has",
        "cap the scaled scores: 'attn_logit_softcapping' times tanh(score / 'attn_logit_softcapping')",
        lambda call, _scene, _values: None if call.argument("cap") is None else call.with_arguments(cap=None),
        stage=6,
    ),
    Hypothesis(
        "softcap-wrong",
        SOFTMAX,
        "scores with another soft cap than the file's",
        "cap the scaled scores at the file's 'attn_logit_softcapping'; 'final_logit_softcapping' is for the logits",
        _other_cap,
        Numbers(_other_cap, "cap", _caps, without=_right_cap),
        "scores soft-capped at {cap:.6g} in place of the file's 'attn_logit_softcapping'",
        stage=6,
    ),
    Hypothesis(
        "sink-missing",
        SOFTMAX,
        "the softmax's denominator without the head's sink",
        "add exp(sink) of each head to the sum that the exponentials are divided by",
        lambda call, _scene, _values: None if call.argument("sinks") is None else call.with_arguments(sinks=None),
        stage=6,
    ),
    Hypothesis(
        "cache-padding",
        SOFTMAX,
        "padding of the cache counted in the softmax's denominator",
        "hide the padding: scores of -inf",
        _padding,
        _paddings,
        "{keys} keys of padding counted in the softmax's denominator",
        stage=6,
        source="ggml-org/llama.cpp#3523",
    ),
    Hypothesis(
        "sink-added",
        SOFTMAX,
        "one more term in the softmax's denominator (a sink)",
        "divide by the sum over the keys alone",
        _sink,
        Numbers(_sink, "sink", lambda _c, _s: (0.0,)),
        "one more term exp({sink:.6g}) in the softmax's denominator (a sink)",
        stage=6,
        source="modular/modular#6591",
    ),
    Hypothesis(
        "softmax-no-max",
        SOFTMAX,
        "exponentials taken without subtracting the row's maximum",
        "subtract the row's maximum before exp",
        lambda call, _scene, _values: with_op(call, _softmax, highest=False),
        stage=6,
        source="ggml-org/llama.cpp#2665",
    ),
    Hypothesis(
        "softmax-axis",
        SOFTMAX,
        "normalised over another axis than the keys",
        "normalise each query's scores over its keys",
        _axis,
        lambda _call, _scene, _observed: ({"axis": axis} for axis in ("queries", "heads")),
        "normalised over {axis} in place of keys",
    ),
    Hypothesis(
        "softmax-unnormalised",
        SOFTMAX,
        "exponentials not divided by their sum",
        "divide by the sum over the keys",
        lambda call, _scene, _values: with_op(call, _softmax, divide=False),
        stage=6,
    ),
)
