"""Shapes of results, where they follow from the inputs: what a call gives is known before it is run."""

from __future__ import annotations

from firstdiff.model.operations import add, append, attend, linear, rms_norm, rope, scores, soft_max, swiglu
from firstdiff.model.probe import Call

Shape = tuple[int, ...]


def shape_of(call: Call) -> Shape | None:
    """Return the shape of a call's result without running the call; None for an operation that is not listed here."""
    x, op = call.inputs[0], call.op
    if op is linear:
        heads, out = call.attributes.get("heads"), call.inputs[1].shape[0]
        return (len(x), out) if heads is None else (len(x), heads, out // heads)
    if op is scores:
        return (x.shape[1], len(x), len(call.inputs[1]))
    if op is attend:
        return (x.shape[1], x.shape[0] * call.inputs[1].shape[-1])
    if op is append:
        new = call.inputs[1]
        return new.shape if x is None else (len(x) + len(new), *new.shape[1:])
    return x.shape if op in (rms_norm, rope, soft_max, swiglu, add) else None
