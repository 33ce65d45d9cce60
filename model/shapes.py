"""Shapes of results, where they follow from the inputs: what a call gives is known before it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from firstdiff.model.attention import append, attend, scores, soft_max
from firstdiff.model.graph.elementwise import geglu, gelu
from firstdiff.model.graph.moves import top_k
from firstdiff.model.graph.operation import NodeOperation
from firstdiff.model.moves import given, head_columns, heads_first, put, remembered, reshaped, viewed
from firstdiff.model.operations import Operation, add, layer_norm, linear, rms_norm, rope, swiglu
from firstdiff.model.probe import Call

Shape = tuple[int, ...]

ALIKE: dict[Operation, str] = {
    rms_norm: "x", layer_norm: "x", rope: "x", soft_max: "kq", swiglu: "gate", geglu: "gate", gelu: "x", add: "a",
    put: "into", given: "value"
}  # fmt: skip
"""Operands and attributes that the result is shaped as."""


def shape_of(call: Call) -> Shape | None:
    """Return the shape of a call's result without running the call; None for an operation that is not listed here."""
    op = call.op
    if isinstance(op, NodeOperation):
        return op.shape
    if op in (reshaped, viewed, remembered):
        return tuple(call.attributes["shape"])
    if op in ALIKE:
        return tuple(call.arguments[ALIKE[op]].shape)
    return _OTHERS[op](call.arguments) if op in _OTHERS else None


def _linear(of: Mapping[str, Any]) -> Shape:
    tokens, heads, out = len(of["x"]), of["heads"], of["weight"].shape[0]
    return (tokens, out) if heads is None else (tokens, heads, out // heads)


def _append(of: Mapping[str, Any]) -> Shape:
    past, new = of["past"], of["new"]
    return tuple(new.shape) if past is None else (len(past) + len(new), *new.shape[1:])


def _heads_first(of: Mapping[str, Any]) -> Shape:
    tokens, width = of["x"].shape
    return (of["heads"], tokens, width // of["heads"])


_OTHERS: dict[Operation, Callable[[Mapping[str, Any]], Shape]] = {
    linear: _linear,
    append: _append,
    scores: lambda of: (of["q"].shape[1], len(of["q"]), len(of["keys"])),
    attend: lambda of: (of["p"].shape[1], of["p"].shape[0] * of["values"].shape[-1]),
    top_k: lambda of: (*of["x"].shape[:-1], of["k"]),
    heads_first: _heads_first,
    head_columns: lambda of: (*of["x"].shape[:2], of["stop"] - of["start"]),
}
