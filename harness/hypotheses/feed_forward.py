"""The feed-forward network gone wrong: swiglu(gate, up)."""

from __future__ import annotations

from collections.abc import Iterator
from math import erf, pi, sqrt

import numpy as np

from firstdiff.hypotheses.fitting import Numbers
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, replaced, with_op
from firstdiff.hypotheses.where import GATED, GATES, GELUS
from firstdiff.model.arithmetic import F64, Arithmetic, Array
from firstdiff.model.graph.elementwise import geglu
from firstdiff.model.operations import Operation
from firstdiff.model.probe import Call

CLIPPED = 1000
"""Numbers that a limit is first sought in."""

HALVINGS = 50


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


ACTIVATIONS: dict[str, Operation] = {
    "gelu (tanh)": lambda x: 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
    "gelu (erf)": lambda x: 0.5 * x * (1 + np.vectorize(erf, otypes=[np.float64])(x / sqrt(2))),
    "gelu (quick)": lambda x: x * _sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu squared": lambda x: np.square(np.maximum(x, 0)),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}
"""Hendrycks & Gimpel 2016 and its two approximations; Nair & Hinton 2010; So et al. 2021; Dauphin et al. 2017."""


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _glu(
    gate: Array, up: Array, *, arithmetic: Arithmetic, activation: Operation = _silu, limit: float | None = None
) -> Array:
    gate, up = np.asarray(gate, np.float64), np.asarray(up, np.float64)
    if limit is not None:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return arithmetic.widen(arithmetic.keep(arithmetic.widen(activation(gate))) * up)


def _other_gelu(call: Call, _scene: Scene, values: Values) -> Call:
    name = values["activation"]
    activation = _silu if name == "SiLU" else ACTIVATIONS[name]
    if call.op is geglu:
        return with_op(call, _glu, activation=activation)
    return with_op(call, _one_side, activation=activation)


def _other_gelus(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"activation": name} for name in (*ACTIVATIONS, "SiLU") if name != "gelu (tanh)")


def _both(call: Call) -> tuple[Array, Array]:
    return call.argument("gate"), call.argument("up")


def _activated(call: Call, _scene: Scene, values: Values) -> Call:
    return with_op(call, _glu, activation=ACTIVATIONS[values["activation"]])


def _activations(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"activation": name} for name in ACTIVATIONS)


def _one_side(x: Array, *, activation: Operation, arithmetic: Arithmetic) -> Array:
    return arithmetic.widen(activation(np.asarray(x, np.float64)))


def _ungated(call: Call, _scene: Scene, values: Values) -> Call:
    gate, up = _both(call)
    side, activation = {
        "silu(gate)": (gate, _silu),
        "up": (up, np.asarray),
        "silu(up)": (up, _silu),
    }[values["kept"]]
    return replaced(call, _one_side, side, activation=activation)


def _kept(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"kept": side} for side in ("silu(gate)", "up", "silu(up)"))


def _limited(call: Call, _scene: Scene, values: Values) -> Call | None:
    return with_op(call, _glu, limit=values["limit"]) if values["limit"] > 0 else None


def _largest(call: Call) -> float:
    """The largest number that a limit may bite at."""
    return max(float(np.abs(x).max()) for x in _both(call))


def _limits(call: Call, _scene: Scene) -> Iterator[float]:
    largest = _largest(call)
    yield from (limit for limit in (7.0, 10.0) if limit < largest)
    yield float(f"{largest / 2:.3g}")


def _limit_starts(call: Call, scene: Scene, observed: Array) -> Iterator[float]:
    """The size of every product grows with the limit, and so does their sum: of those that are off most, bisected."""
    off = np.abs(observed - np.asarray(call.compute(scene.arithmetic), np.float64)).reshape(-1)
    most = np.argsort(off, kind="stable")[-CLIPPED:]
    gate, up = (np.asarray(x, np.float64).reshape(-1)[most] for x in _both(call))
    size, weight = np.abs(observed.reshape(-1)[most]), off[most]
    low, high = 0.0, _largest(call)
    for _ in range(HALVINGS):
        limit = (low + high) / 2
        too_small = weight @ (np.abs(_glu(gate, up, arithmetic=F64, limit=limit)) - size) < 0
        low, high = (limit, high) if too_small else (low, limit)
    yield high


TABLE = (
    Hypothesis(
        "gate-up-swapped",
        GATES,
        "the activation on up in place of gate",
        "apply the activation to gate, and multiply by up",
        lambda call, _scene, _values: call.with_arguments(gate=call.argument("up"), up=call.argument("gate")),
        stage=4,
        source="nntrainer/nntrainer#4194",
    ),
    Hypothesis(
        "activation-missing",
        GATED,
        "no activation: gate * up",
        "compute silu(gate) * up",
        lambda call, _scene, _values: with_op(call, _glu, activation=np.asarray),
    ),
    Hypothesis(
        "activation-wrong",
        GATED,
        "another activation than SiLU",
        "compute silu(gate) * up",
        _activated,
        _activations,
        "{activation} in place of SiLU",
        source="vllm-project/vllm#3411",
    ),
    Hypothesis(
        "gelu-wrong",
        GELUS,
        "another activation in place of GELU by its tanh formula",
        "compute GELU by its tanh formula, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))",
        _other_gelu,
        _other_gelus,
        "{activation} in place of gelu (tanh)",
    ),
    Hypothesis(
        "gate-missing",
        GATED,
        "no product of gate and up",
        "compute silu(gate) * up",
        _ungated,
        _kept,
        "{kept} alone in place of silu(gate) * up",
    ),
    Hypothesis(
        "glu-clipped",
        GATED,
        "gate and up clipped before the activation",
        "clip nothing: the file asks for no limit",
        _limited,
        Numbers(_limited, "limit", _limits, starts=_limit_starts),
        "gate and up clipped at {limit:.6g} before the activation",
        stage=4,
    ),
)
