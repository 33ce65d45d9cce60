"""Floors: the local error that a correct engine stays below, by arithmetic and by what a judged segment spans."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from firstdiff.dumps.points import axes_of
from firstdiff.judging.measure import SMALLEST_F16
from firstdiff.model.arithmetic import BF16, F16, GGML, Arithmetic, Array
from firstdiff.model.attention import append, attend, heads_at_once, looked_at, scores, soft_max
from firstdiff.model.graph.elementwise import geglu
from firstdiff.model.graph.operation import NodeOperation
from firstdiff.model.moves import MOVES
from firstdiff.model.operations import Operation, layer_norm, linear, rms_norm, rope, swiglu
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

UNIT = 2.0**-24
"""Half a unit in the last place of float32: what one rounding changes a number by, at most."""

FLIP = 0.1
"""What activations that round to another code may change a product by, times the square root of its length.

Where a segment spans several operations, what a product is fed was computed, and is some 1e-7 away from what
the candidate had: now and then an activation falls on the other side of a rounding boundary. One code of some
40 on average changes a product of n terms by 1 / (40 sqrt(n)); four at once are allowed for. On SmolLM2,
where 0.1 / sqrt(576) is 4e-3, tests/judging/test_floors.py sees less than 1e-3 for one product, 1e-2 for a layer, and
0.15 for the whole model. With two layers of quantised experts, of tiny gpt-oss models, llama.cpp is up to 1.5e-2 away,
and 4.6e-2 are allowed (tests/conformance/test_families.py runs one)."""

HALF = 1e-3
"""The same for operands rounded to f16 or bf16; tests/judging/test_floors.py sees less than 5e-4 on SmolLM2."""

FLASH_F16 = 1e-3
"""Floor of ggml's flash attention where it adds up in f16: its scores are summed in an order of the processor's, and a
weight that is 1e-6 away rounds a sum to another f16 now and then. tests/engines/test_flash.py sees less than 3e-4."""

CODE = {"q8_0": 1.0, "q4_0": 16.0}
"""How large a code of a cache's type is, against an activation's (`FLIP`)."""

MOST = 0.3
"""Beyond it nothing can be said of a segment: errors of different origin look alike."""


STORED = {"f16": F16.floor, "bf16": BF16.floor, "f8_e4m3": 0.2, "f8_e5m2": 0.4}
"""What storing a tensor in a narrower dtype than it was computed in takes from it, as a floor."""

READ, OFF = "read", 3e-6
"""The dtype of a tensor that was read from differences of means, and what that may add to it: in float32, where the C
engine's are up to 1.6e-6 off, of 13 tokens (tests/bench/clean_boxes.py)."""

ROUNDED = {"f16": 2.0**-12, "bf16": 2.0**-9}
"""What one rounding to a dtype changes a number by, at most."""

DOUBLE = 6.0
"""How much more an input stored in f16 changes a product whose operands are rounded to bf16: an eighth of the numbers
of 11 bits fall on another one of 8 bits. Clean runs stay below 3.6 (tests/judging/test_floors.py)."""

CODES = {"f16": 12.0, "bf16": 6.0}
"""How much more an input that was rounded when it was stored changes a product whose activations are quantised: some
of their codes flip, and the less the rounding, the more that is beside it. On SmolLM2's clean llama.cpp traces of 7, 12
and 48 tokens the products are up to 7.5 and 3.9 times the floor of storing (tests/judging/test_floors.py)."""


def stored(arithmetic: Arithmetic, call: Call, dtype: str, recorded: Array) -> float:
    """What a recorded value has lost in the file: nothing where the arithmetic has it in that dtype anyway.

    Below f16's normal numbers digits are lost one by one. It is the smallest row that loses most.
    """
    if call.op is append and dtype == (arithmetic.values if call.argument("values") else arithmetic.keys):
        return 0.0
    lost = STORED.get(dtype, 0.0)
    if dtype == READ:  # activations that are a little off fall on other codes now and then
        lost = F16.floor if arithmetic.ggml_products else OFF
    if dtype == "f16":
        rms = _rows(call, np.asarray(recorded, np.float64))
        smallest = rms[(rms > 0) & np.isfinite(rms)].min(initial=SMALLEST_F16)
        lost = min(MOST, lost * SMALLEST_F16 / float(smallest))
    return lost


def _rows(call: Call, x: Array) -> Array:
    """Root mean square of each row: of a token's dimensions, or a head's, or of all that a token scores."""
    with np.errstate(all="ignore"):
        squares: Array = x**2
        if "query" not in axes_of(call.point):
            squares = squares.mean(-1)
        else:
            seen = np.broadcast_to(looked_at(x.shape, call.argument("mask")), x.shape)
            squares = np.where(seen, squares, 0.0).mean(0).sum(-1) / seen.mean(0).sum(-1)
    return np.sqrt(squares)


def floor(arithmetic: Arithmetic, calls: Sequence[Call], *, own: float = 0.0, inputs: float = 0.0) -> float:
    """The floor of a segment: the calls since the last recorded values, and the judged one.

    `own` and `inputs` are what the judged value and its inputs lost when they were stored.
    """
    passed = inputs * passed_on(arithmetic, calls[-1], inputs) if inputs else 0.0
    return max(_computed(arithmetic, calls), own, passed)


def passed_on(arithmetic: Arithmetic, call: Call, inputs: float) -> float:
    """By how much an operation can enlarge a relative error `inputs` of its inputs."""
    codes = CODES["f16" if inputs <= F16.floor else "bf16"]
    if call.op is linear and arithmetic.ggml_products and call.argument("weight").kind.block > 1:
        return codes
    cache = arithmetic.values if call.argument("values") is True else arithmetic.keys
    if call.op in (append, scores) and cache in CODE:  # keys fall on other codes, and so do the queries beside them
        return codes * math.sqrt(CODE[cache] if call.op is append else 1.0)
    operands = arithmetic.products if call.op is linear else arithmetic.attention
    if operands == "bf16" and inputs <= F16.floor and call.op in _SUMMED:
        return DOUBLE
    if call.op is soft_max:  # an exponent's absolute error is its result's relative one
        return max(1.0, _largest_exponent(call))
    if call.op is swiglu:
        return _of_silu(call)
    return 1.0


def _of_silu(call: Call) -> float:
    """The condition number of silu, weighted by what each element contributes: large where gates are very negative."""
    gate, up = (np.asarray(call.argument(name), np.float64) for name in ("gate", "up"))
    with np.errstate(all="ignore"):
        off = 1 / (1 + np.exp(gate))  # 1 - sigmoid, which is not 1 less it where that is tiny
        y = gate / (1 + np.exp(-gate)) * up
        ratio = np.linalg.norm(y * (1 + gate * off), axis=-1) / np.linalg.norm(y, axis=-1)
    return max(1.0, _largest(ratio))


def _largest(x: Array) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))


def _computed(arithmetic: Arithmetic, calls: Sequence[Call]) -> float:
    calls = [call for call in calls if call.op not in MOVES] or calls[-1:]
    own = sum(arithmetic.floor + _float32(arithmetic, call) for call in calls)
    if len(calls) == 1:
        return own
    if arithmetic.flash and [call.op for call in calls] == [scores, soft_max, attend]:
        return 2 * own + (FLASH_F16 if arithmetic.attends_in_f16(len(calls[0].argument("q"))) else _exponent(calls[1]))
    return min(MOST, 2 * own + sum(_rounding(arithmetic, call) for call in calls))


def off(arithmetic: Arithmetic, call: Call) -> float:
    """What one operation may add to the error of rows that are computed from far behind, as a right engine would."""
    return 2 * (arithmetic.floor + _float32(arithmetic, call)) + _rounding(arithmetic, call)


def _exponent(call: Call) -> float:
    """What a rounding of the scores changes their softmax by."""
    return UNIT * _largest_exponent(call)


def _largest_exponent(call: Call) -> float:
    """The largest of a softmax's exponents, but for hidden ones, where engines have a large negative number."""
    kq = call.argument("kq")
    seen = np.broadcast_to(looked_at(kq.shape, call.argument("mask")), kq.shape)
    parts = (_largest(kq[of][seen[of]]) for of in heads_at_once(kq.shape))
    return max(parts, default=0.0) * float(call.argument("scale"))


def _float32(arithmetic: Arithmetic, call: Call) -> float:  # noqa: PLR0911 - one for each operation
    """What engines may round in ways of their own, in float32 above all; what is known in detail is emulated.

    A sum of n terms added one after another is off by 2e-8 sqrt(n) (seen up to n = 14336); the angle of a rotation by
    a rounding of itself, which grows with the position; so is the exponent of a softmax, with the score.
    """
    group = arithmetic.attention if call.op in (scores, soft_max, attend) else arithmetic.products
    if call.op is soft_max and arithmetic.weights_and_results in ROUNDED:  # scores are rounded again once scaled
        return max(0.0, ROUNDED[arithmetic.weights_and_results] * _largest_exponent(call) - arithmetic.floor)
    if arithmetic.dtype is not np.float32 or arithmetic.weights_and_results is not None or group == GGML:
        return 0.0
    if call.op is rope:
        return UNIT * max(map(abs, call.argument("positions")), default=0)
    if call.op is soft_max:
        return _exponent(call)
    if call.op in (rms_norm, layer_norm):  # its sum is of squares, none of which cancel, and its root halves the error
        return UNIT / 8 * math.sqrt(call.argument("x").shape[-1])
    if call.op in (swiglu, geglu):  # a gate's own rounding, by its exponential
        return UNIT * _of_silu(call)
    if isinstance(call.op, NodeOperation):
        return UNIT / 2 * math.sqrt(call.op.summed)
    if call.op in _SUMMED:
        return UNIT / 2 * math.sqrt(call.argument(_SUMMED[call.op]).shape[-1])
    return 0.0


_SUMMED: dict[Operation, str] = {linear: "weight", scores: "q", attend: "p"}
"""Operands whose last axis is summed over."""


def _rounding(arithmetic: Arithmetic, call: Call) -> float:
    """What one operation of a segment adds, if it rounds its operands."""
    weight = _multiplied(call)
    if weight is not None and arithmetic.ggml_products:
        if weight.kind.block > 1:
            return FLIP / math.sqrt(weight.shape[-1])
        return 0.0 if weight.kind.name == "F32" else HALF
    if weight is not None:
        return 0.0 if arithmetic.products is None else HALF
    if call.op in (append, scores, attend):
        return _of_attention(arithmetic, call)
    return 0.0


def _multiplied(call: Call) -> Weight | None:
    """The weight that activations are multiplied with, of a layer or of experts; None of what is no such product."""
    if call.op is linear:
        weight: Weight = call.argument("weight")
        return weight
    experts = isinstance(call.op, NodeOperation) and call.op.node.op == "MUL_MAT_ID"
    return call.inputs[0] if experts and isinstance(call.inputs[0], Weight) else None


def _of_attention(arithmetic: Arithmetic, call: Call) -> float:
    """The same for what enters the cache, and for the operands of attention."""
    of_values = call.op is attend or call.argument("values")
    cache = arithmetic.values if of_values else arithmetic.keys
    if cache in CODE and call.op is not attend:  # queries are rounded by the type of the keys, to codes of q8_0
        held = call.argument("new" if call.op is append else "keys")
        return FLIP * CODE[cache if call.op is append else "q8_0"] / math.sqrt(held.shape[-1])
    return 0.0 if arithmetic.attention is None and cache is None else HALF
