"""Norms gone wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from firstdiff.hypotheses.fitting import Numbers
from firstdiff.hypotheses.hypothesis import Change, Hypothesis, Scene, Values, identity, replaced, with_op
from firstdiff.hypotheses.where import LAYER_NORMS, NORMS, RMS_NORMS, Where
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Operation, layer_norm, rms_norm
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight


def _mean_of_squares(x: Array) -> Array:
    return np.asarray(np.einsum("...i,...i->...", x, x, dtype=np.float64)[..., None] / x.shape[-1])


def _weighted(x: Array, weight: Weight | None, arithmetic: Arithmetic) -> Array:
    y = arithmetic.widen(x)
    return y if weight is None else arithmetic.keep(y) * arithmetic.keep(arithmetic.widen(weight.values()))


def _norm(divisor: Operation) -> Operation:
    """A norm that divides by something else: `divisor` makes it of x [..., n] in float64 and eps."""

    def norm(x: Array, weight: Weight | None, *, eps: float, arithmetic: Arithmetic) -> Array:
        wide = np.asarray(x, np.float64)
        return _weighted(wide / divisor(wide, eps), weight, arithmetic)

    return norm


def _layer_norm(x: Array, weight: Weight | None, *, eps: float, arithmetic: Arithmetic) -> Array:
    wide = np.asarray(x, np.float64)
    return rms_norm(arithmetic.widen(wide - wide.mean(-1, keepdims=True)), weight, eps=eps, arithmetic=arithmetic)


def _rms_norm(
    x: Array, weight: Weight | None, bias: Weight | None = None, *, eps: float, arithmetic: Arithmetic
) -> Array:
    y = rms_norm(x, weight, eps=eps, arithmetic=arithmetic)
    return y if bias is None else y + arithmetic.keep(arithmetic.widen(bias.values()))


def _in_f16(order: str) -> Operation:
    """Squares summed in float16, where they overflow beyond 65504 and lose their last bits long before."""

    def divisor(x: Array, eps: float) -> Array:
        with np.errstate(over="ignore"):
            squares = np.square(x.astype(np.float16))
            if order == "one by one":
                total = np.add.accumulate(squares, axis=-1, dtype=np.float16)[..., -1:]
            else:
                total = squares.sum(-1, keepdims=True, dtype=np.float16)
        return np.asarray(np.sqrt(total.astype(np.float64) / x.shape[-1] + eps))

    return _norm(divisor)


def _dense(change: Operation) -> Change:
    """Changes the numbers of a norm's weight: as the engine holds them, or before it `rounded` them to that."""

    def changed(call: Call, scene: Scene, values: Values) -> Call | None:
        weight = call.held_in(scene.arithmetic).argument("weight")
        if weight is None:
            return None
        kind, first = weight.held, replace(weight, held=None) if values.get("rounded") else weight
        return call.with_arguments(weight=replace(first, dense=change(first.values())).held_in(kind))

    return changed


def _when_rounded(call: Call, scene: Scene, _observed: Array | None) -> Iterator[Values]:
    """Whether a weight is changed as it is held, or before that: the same where it is held as the file has it."""
    yield {}
    weight = call.held_in(scene.arithmetic).argument("weight")
    if weight is not None and weight.held is not None:
        yield {"rounded": "afterwards"}


def _op(op: Operation) -> Change:
    return lambda call, _scene, _values: with_op(call, op)


def _eps(call: Call, _scene: Scene, values: Values) -> Call | None:
    return call.with_arguments(eps=values["eps"]) if values["eps"] >= 0 else None


def _other_eps(call: Call, _scene: Scene) -> Iterator[float]:
    own = float(call.argument("eps"))
    yield from (1e-5, 1e-6) if np.isclose(own, 1e-6) else (1e-6, 1e-5)
    yield from (0.0, 1e-8, 1e-12, 1e-3)


def _told_eps(values: Values) -> str:
    eps = values["eps"]
    return f"an epsilon of {eps:.4g} in place of the file's" if eps else "no epsilon, or one too small to show here"


def _own_eps(call: Call, _scene: Scene) -> Iterator[float]:
    yield float(call.argument("eps"))


def _eps_starts(call: Call, _scene: Scene, observed: Array) -> Iterator[float]:
    """From each row's scale: the smaller its rms, the more it tells. A single row's can be any factor's."""
    weight, dim = call.argument("weight"), observed.shape[-1]
    x = np.asarray(call.argument("x"), np.float64).reshape(-1, dim)  # a row per token, or per head of one
    observed = observed.reshape(-1, dim)
    if len(observed) == 1:
        return
    if call.op is layer_norm:
        x = x - x.mean(-1, keepdims=True)
        bias = call.argument("bias")
        observed = observed if bias is None else observed - bias.values()
    unscaled = x if weight is None else x * weight.values()
    power = (unscaled**2).sum(-1)
    mean = _mean_of_squares(x)[..., 0]
    row = int(np.where(mean > 0, mean, np.inf).argmin())
    factor = float((observed[row] * unscaled[row]).sum() / power[row]) if power[row] else 0.0
    if factor > 0 and (eps := factor**-2 - float(mean[row])) > 0:
        yield eps


def _of_all(x: Array, eps: float) -> Array:
    return np.asarray(np.sqrt(np.square(x).mean() + eps))


def _missing(call: Call, _scene: Scene, _values: Values) -> Call:
    return replaced(call, identity, call.argument("x"))


def _weight_only(call: Call, _scene: Scene, _values: Values) -> Call | None:
    weight = call.argument("weight")
    return None if weight is None else replaced(call, _times, call.argument("x"), weight)


def _times(x: Array, weight: Weight, *, arithmetic: Arithmetic) -> Array:
    return _weighted(x, weight, arithmetic)


TABLE = (
    Hypothesis(
        "norm-eps",
        NORMS,
        "an epsilon that is not the file's",
        "read '<architecture>.attention.layer_norm_rms_epsilon' of the file",
        _eps,
        Numbers(_eps, "eps", _other_eps, starts=_eps_starts, without=_own_eps),
        _told_eps,
        source="ggml-org/llama.cpp#2373",
    ),
    Hypothesis(
        "norm-eps-outside",
        RMS_NORMS,
        "the epsilon added after the root in place of before it",
        "add epsilon to the mean of squares, then take the root",
        _op(_norm(lambda x, eps: np.sqrt(_mean_of_squares(x)) + eps)),
        source="allenai/OLMo#281",
    ),
    Hypothesis(
        "norm-layernorm",
        RMS_NORMS,
        "the mean subtracted, as LayerNorm does",
        "use RMS norm, which subtracts nothing",
        _op(_layer_norm),
        source="sonos/tract#2749",
    ),
    Hypothesis(
        "norm-rms",
        LAYER_NORMS,
        "RMS norm in place of LayerNorm: the mean is not subtracted",
        "subtract the mean of each row first, as LayerNorm does",
        lambda call, _scene, _values: with_op(call, _rms_norm),
    ),
    Hypothesis(
        "norm-bias-missing",
        LAYER_NORMS,
        "a norm without its bias",
        "add the norm's bias",
        lambda call, _scene, _values: None if call.argument("bias") is None else call.with_arguments(bias=None),
    ),
    Hypothesis(
        "norm-plus-one",
        NORMS,
        "1 added to the norm's weight",
        "use the weight as it is: GGUF's conversion has added Gemma's 1 already",
        _dense(lambda w: w + 1),
        _when_rounded,
        "1 added to the norm's weight before it was rounded",
        source="vllm-project/vllm#31464",
    ),
    Hypothesis(
        "norm-weight-missing",
        NORMS,
        "a norm without its weight",
        "multiply by the norm's weight",
        lambda call, _scene, _values: None if call.argument("weight") is None else call.with_arguments(weight=None),
    ),
    Hypothesis(
        "norm-weight-twice",
        NORMS,
        "the norm's weight multiplied in twice",
        "multiply by the norm's weight once",
        _dense(np.square),
        _when_rounded,
        "the norm's weight multiplied in twice, squared before it was rounded",
    ),
    Hypothesis(
        "norm-sum",
        RMS_NORMS,
        "the sum of squares in place of their mean",
        "divide the sum of squares by the length of the row",
        _op(_norm(lambda x, eps: np.sqrt(_mean_of_squares(x) * x.shape[-1] + eps))),
    ),
    Hypothesis(
        "norm-of-all-tokens",
        RMS_NORMS,
        "one mean of squares over all tokens in place of one a token",
        "take the mean over each token's row alone",
        lambda call, _scene, _values: with_op(call, _norm(_of_all)) if len(call.argument("x")) > 1 else None,
    ),
    Hypothesis(
        "norm-f16",
        RMS_NORMS,
        "squares summed in float16",
        "sum the squares in float32",
        lambda call, _scene, values: with_op(call, _in_f16(values["order"])),
        lambda _call, _scene, _observed: ({"order": order} for order in ("one by one", "in pairs")),
        "squares summed in float16, {order}",
        rounds=True,
        source="nntrainer/nntrainer#3935",
    ),
    Hypothesis(
        "norm-root-missing",
        RMS_NORMS,
        "no division by the root mean square",
        "divide by the root mean square before the weight",
        _weight_only,
    ),
    Hypothesis(
        "norm-missing", Where((rms_norm, layer_norm), inside=True), "no norm at all", "apply the norm", _missing
    ),
    Hypothesis(
        "final-norm-missing",
        Where((rms_norm, layer_norm), inside=False),
        "no norm before the output matrix",
        "apply output_norm to the last layer's output",
        _missing,
        source="awslabs/keys_values#139",
    ),
)
