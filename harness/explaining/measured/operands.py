"""The operands of an operation that its result says something of, element by element."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.activations import silu
from firstdiff.explaining.measured.view import View, rows_of_operand, same
from firstdiff.model.arithmetic import F64
from firstdiff.model.operations import Operation, add, layer_norm, linear, rms_norm, rope, swiglu

Floats = npt.NDArray[np.float64]


def views(result: View) -> Iterator[View]:
    """The result, and each operand that can be measured by it."""
    yield result
    make = _OPERANDS.get(result.call.op)
    if make is not None:
        yield from make(result)


def _add(view: View) -> Iterator[View]:
    a, b = (rows_of_operand(view.call.argument(name), view) for name in ("a", "b"))
    yield view.with_operand("a", a, lambda x: x + b)
    yield view.with_operand("b", b, lambda x: a + x)


def _swiglu(view: View) -> Iterator[View]:
    gate, up = (rows_of_operand(view.call.argument(name), view) for name in ("gate", "up"))
    active = silu(gate)
    yield view.with_operand("up", up, lambda x: active * x)
    yield _inverted(view, gate, up)


def _inverted(view: View, gate: Floats, up: Floats) -> View:
    """The gate as the candidate's numbers say: they say little where silu is flat, or up is near 0."""
    with np.errstate(all="ignore"):
        seen = (view.result + view.error) / up
    given = gate.copy()
    for _ in range(NEWTON):
        off, slope = silu(given) - seen, _slope(given)
        step = np.where(np.abs(slope) > FLAT, off / np.where(np.abs(slope) > FLAT, slope, 1), 0.0)
        given = given - np.clip(np.where(np.isfinite(step), step, 0.0), -1.0, 1.0)
    known = np.isfinite(seen) & (np.abs(silu(given) - seen) <= 1e-3 * np.abs(seen) + 1e-6)
    weight = np.where(known, np.abs(_slope(given) * up), 0.0)
    error = np.where(known, given - gate, 0.0)
    return replace(
        view.with_operand("gate", gate, same), result=gate, error=error, scale=view.scale * weight, apart=True
    )


NEWTON, FLAT = 60, 0.02
"""Steps to the argument of silu, and the slope below which its value does not say what that is."""


def _slope(x: Floats) -> Floats:
    """The derivative of silu."""
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-x))
    return np.asarray(sigmoid * (1 + x * (1 - sigmoid)))


def _norm(view: View) -> Iterator[View]:
    weight, bias = view.call.argument("weight"), view.call.argument("bias")
    if weight is None:
        return
    x = np.asarray(view.call.argument("x"), np.float64)
    n = x.shape[-1]
    bare = view.call.op(x, None, eps=view.call.argument("eps"), arithmetic=F64)[view.rows].reshape(-1, n)
    own = np.broadcast_to(weight.values().astype(np.float64), bare.shape)
    plus = np.zeros(n) if bias is None else bias.values().astype(np.float64)
    heads = len(bare) // len(view.rows)
    rows = replace(
        view,
        error=view.error.reshape(-1, n),
        result=view.result.reshape(-1, n),
        own=view.own.reshape(-1, n),
        rows=np.arange(len(bare)),
        scale=np.repeat(view.scale, heads, axis=0),
        by_token=False,
    )
    yield rows.with_operand("weight", own, lambda w: bare * w + plus)
    if bias is not None:
        yield rows.with_operand("bias", np.broadcast_to(plus, bare.shape), lambda b: bare * own + b)


def _linear(view: View) -> Iterator[View]:
    bias = view.call.argument("bias")
    if bias is not None:
        own = np.broadcast_to(bias.values().astype(np.float64), view.result.shape)
        bare = view.result - own
        yield view.with_operand("bias", own, lambda b: bare + b)


def _rope(view: View) -> Iterator[View]:
    """What was rotated, as the candidate's numbers say when they are rotated back."""
    positions = [-p for p in view.call.argument("positions")]
    shape = view.case.computed.shape
    back = view.call.with_arguments(positions=positions)
    error = np.zeros((shape[0], view.error.shape[1]))
    error[view.rows] = view.error
    turned = rows_of_operand(back.with_arguments(x=error.reshape(shape)).compute(F64), view)
    own = rows_of_operand(view.call.argument("x"), view)
    yield replace(view.with_operand("x", own, same), result=own, error=turned, apart=True)


_OPERANDS: dict[Operation, Callable[[View], Iterator[View]]] = {
    add: _add,
    swiglu: _swiglu,
    rms_norm: _norm,
    layer_norm: _norm,
    linear: _linear,
    rope: _rope,
}
