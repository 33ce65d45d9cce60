"""Making what was measured of a sum happen: terms that count otherwise than once, or are read elsewhere."""

from __future__ import annotations

import numpy as np

from firstdiff.explaining.measured.alteration import INDICES, operand, order_of
from firstdiff.explaining.measured.numbers import times
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.statement import statement, these
from firstdiff.hypotheses.hypothesis import Scene, Values
from firstdiff.hypotheses.row_kernels import times_factor
from firstdiff.model.arithmetic import Array
from firstdiff.model.attention import attend, scores
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight


def terms(call: Call, _scene: Scene, values: Values) -> Call | None:
    """Terms of a sum counted otherwise than once."""
    axis = next((name for name in ("input", "key", "dimension") if name in values), None)
    if axis is None:
        return None
    pattern = Pattern.read(values[axis])
    operand = call.argument("weight" if call.op is linear else values["of"])
    if operand is None:
        return None
    n = operand.shape[-1]
    if not pattern.fits(n):
        return None
    factor = np.ones(n, np.float32)
    factor[pattern.among(n)] = values["by"]
    if isinstance(operand, Weight):
        return call.with_arguments(weight=times_factor(operand, factor))
    changed = operand * factor.astype(operand.dtype)
    return _of_heads(call, values, operand, changed)


def _of_heads(call: Call, values: Values, own: Array, changed: Array) -> Call | None:
    """The call with an operand that is changed in some heads, if these are named: [head, ..] or [token, head, ..]."""
    if "head" in values:
        axis = 0 if values["of"] == "p" else 1
        pattern = Pattern.read(values["head"])
        if not pattern.fits(own.shape[axis]):
            return None
        meant = np.isin(np.arange(own.shape[axis]), pattern.among(own.shape[axis]))
        changed = np.where(meant.reshape([-1 if i == axis else 1 for i in range(own.ndim)]), changed, own)
    return call.with_arguments(**{values["of"]: np.ascontiguousarray(changed)})


def operand_taken(call: Call, _scene: Scene, values: Values) -> Call | None:
    """Terms whose left operand is read from elsewhere."""
    operand = call.argument(values["of"])
    if not isinstance(operand, np.ndarray):
        return None
    order = order_of(values["moves"], operand.shape[-1])
    return None if order is None else _of_heads(call, values, operand, operand[..., order])


def _operand_taken(values: Values) -> str:
    ((places, by),) = values["moves"]
    meant = these(values["axis"], places)
    return f"for {meant}, {operand(values)} is read {abs(by)} {'after' if by > 0 else 'before'} its place"


def _terms(values: Values) -> str:
    axis = next(name for name in ("input", "key", "dimension") if name in values)
    by, meant = values["by"], these(axis, values[axis])
    if "head" in values:
        meant += f" of {these('head', values['head'])}"
    if values.get("all"):
        return "the product leaves out all of its inputs: only its bias is left"
    tail = _tail(Pattern.read(values[axis]), values.get("among"))
    if by == 0:
        return f"the sum leaves out {meant}{tail}"
    return f"the sum counts {meant}{tail} {times(by)}, and the others once"


def _tail(pattern: Pattern, n: int | None) -> str:
    """What a range is in which a kernel that takes so many at a time does not end."""
    if n is None:
        return ""
    ((start, stop), *others) = pattern.runs
    if others or pattern.period is not None or stop != n:
        return f" of {n}"
    block = next((b for b in BLOCKS if start and start % b == 0 and n // b * b == start), None)
    return f" of {n}" + (f" ({start} is the last multiple of {block} below {n})" if block else "")


BLOCKS = (4, 8, 16, 32, 64, 128, 256, 512)
"""How many numbers a kernel may take at a time."""


STATEMENTS = (
    statement(
        "measured-terms", "some terms of a sum count otherwise than once", terms, _terms, ops=(linear, attend, scores)
    ),
    statement(
        "measured-operand-taken",
        "an operand is read at other places",
        operand_taken,
        _operand_taken,
        INDICES,
        ops=(linear, attend, scores),
    ),
)
