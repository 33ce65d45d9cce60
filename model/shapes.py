"""Shapes of results, where they follow from the inputs: what a call gives is known before it is run."""

from __future__ import annotations

from firstdiff.model.operations import Operation, add, append, attend, linear, rms_norm, rope, scores, soft_max, swiglu
from firstdiff.model.probe import Call

Shape = tuple[int, ...]

ALIKE: dict[Operation, str] = {rms_norm: "x", rope: "x", soft_max: "kq", swiglu: "gate", add: "a"}
"""Operands that the result is shaped as."""


def shape_of(call: Call) -> Shape | None:
    """Return the shape of a call's result without running the call; None for an operation that is not listed here."""
    of, op = call.arguments, call.op
    if op is linear:
        tokens, heads, out = len(of["x"]), of["heads"], of["weight"].shape[0]
        return (tokens, out) if heads is None else (tokens, heads, out // heads)
    if op is scores:
        return (of["q"].shape[1], len(of["q"]), len(of["keys"]))
    if op is attend:
        return (of["p"].shape[1], of["p"].shape[0] * of["values"].shape[-1])
    if op is append:
        past, new = of["past"], of["new"]
        return new.shape if past is None else (len(past) + len(new), *new.shape[1:])
    return of[ALIKE[op]].shape if op in ALIKE else None
