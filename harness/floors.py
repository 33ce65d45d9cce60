"""Floors: the local error that a correct engine stays below, by arithmetic and by what a judged segment spans."""

from __future__ import annotations

import math
from collections.abc import Sequence

from firstdiff.model.arithmetic import Arithmetic
from firstdiff.model.operations import append, attend, linear, scores
from firstdiff.model.probe import Call

FLIP = 0.1
"""What activations that round to another code may change a product by, times the square root of its length.

Where a segment spans several operations, what a product is fed was computed, and is some 1e-7 away from what
the candidate had: now and then an activation falls on the other side of a rounding boundary. One code of some
40 on average changes a product of n terms by 1 / (40 sqrt(n)); four at once are allowed for. Seen on SmolLM2:
3e-4 for one product (0.1 / sqrt(576) = 4e-3), 4e-3 for a layer, 9e-2 for the whole model."""

HALF = 1e-3
"""The same for operands rounded to f16 or bf16. Seen on SmolLM2: 1e-4."""

MOST = 0.3
"""Beyond it nothing can be said of a segment: errors of different origin look alike."""


def floor(arithmetic: Arithmetic, calls: Sequence[Call]) -> float:
    """The floor of a segment: the calls since the last recorded values, and the judged one."""
    if len(calls) == 1:
        return arithmetic.floor
    return min(MOST, 2 * arithmetic.floor * len(calls) + sum(_rounding(arithmetic, call) for call in calls))


def _rounding(arithmetic: Arithmetic, call: Call) -> float:
    """What one operation of a segment adds, if it rounds its operands."""
    if call.op is linear and arithmetic.ggml_products:
        weight = call.inputs[1]
        if weight.kind.block > 1:
            return FLIP / math.sqrt(weight.shape[-1])
        return 0.0 if weight.kind.name == "F32" else HALF
    if call.op in (append, scores, attend) and arithmetic.attention is not None:
        return HALF
    return 0.0
