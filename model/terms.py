"""How large the terms are that a product adds up.

Rounding is relative to what is summed, not to the sum. Where the sum is much smaller than its terms, a correct
engine's error is large beside the result: on SmolLM2's ``attn_output`` in Q4_1 the codes' part and the minima's
part are each 12.5 times their sum, and llama.cpp's own float32 sums are then 1.1e-6 off.

A sigmoid is no sum, but it has a smallest size too: of gates below -87 it is 0 in one float32 engine and 1e-38 in
another, and where all gates of a token are, so are its results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.model.arithmetic import F64, Array
from firstdiff.model.attention import attend, scores
from firstdiff.model.graph.operation import NodeOperation
from firstdiff.model.operations import Derived, add, layer_norm, linear, swiglu
from firstdiff.model.probe import Call
from firstdiff.model.workers import shared_out

SIGMOID = 2.0**-102
"""Of a gate times its up, what counts as a term: the smallest normal float32, 2^-126, over a unit in the last place."""


def terms(call: Call) -> npt.NDArray[np.float64] | None:
    """Root of the sum of the squared terms of each result, shaped as the result; None for what has no terms.

    For weights whose blocks have minima, the products with the minima count as terms of their own, since
    block-wise kernels sum them apart.
    """
    if isinstance(call.op, Derived):
        inner = None if call.op.sizes is None else terms(replace(call, op=call.op.of))
        return None if inner is None or call.op.sizes is None else np.asarray(call.op.sizes(inner), np.float64)
    if isinstance(call.op, NodeOperation):
        size = call.op.sizes(call.inputs, F64, call.attributes)
        return None if size is None else np.asarray(size, np.float64)
    function = _TERMS.get(call.op)
    return None if function is None else function(call)


def _linear(call: Call) -> npt.NDArray[np.float64]:
    x, weight = np.asarray(call.argument("x"), np.float64), call.argument("weight")
    scale, unit = _units(x)
    size = np.empty((x.shape[0], weight.shape[0]))

    def fill(bounds: Sequence[tuple[int, int]]) -> None:
        buffer = weight.buffer()
        for start, stop in bounds:
            minima = weight.minimum_of_each(start, stop)
            largest, rows = _units(weight.rows(start, stop, buffer))
            squares = (unit**2 @ (rows**2).T) * largest.T**2
            if minima is not None:
                largest, rows = _units(minima)
                squares += (unit @ rows.T) ** 2 * largest.T**2
            np.multiply(np.sqrt(squares), scale, out=size[:, start:stop])

    shared_out(fill, list(weight.chunks()))
    heads = call.argument("heads")
    return size if heads is None else size.reshape(x.shape[0], heads, -1)


def _units(x: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.float32]]:
    """The largest number of each row, and rows in units of it, whose squares float32 holds whatever they are."""
    largest = np.where(np.isfinite(x), np.abs(x), 0).max(-1, keepdims=True, initial=0).astype(np.float64)
    largest[largest == 0] = 1
    return largest, np.asarray(x / largest.astype(x.dtype), np.float32)


def _scores(call: Call) -> npt.NDArray[np.float64]:
    q, keys = (np.asarray(x, np.float64) ** 2 for x in call.inputs)
    return np.sqrt(np.asarray(scores(q, keys, arithmetic=F64, **call.attributes), np.float64))


def _attend(call: Call) -> npt.NDArray[np.float64]:
    p, values = (np.asarray(x, np.float64) ** 2 for x in call.inputs)
    return np.sqrt(np.asarray(attend(p, values, arithmetic=F64, **call.attributes), np.float64))


def _add(call: Call) -> npt.NDArray[np.float64]:
    a, b = (np.asarray(x, np.float64) for x in call.inputs)
    return np.hypot(a, b)


def _layer_norm(call: Call) -> npt.NDArray[np.float64]:
    """A centred row can be small beside what it was: its terms are the input, as the norm scales it, and the bias."""
    x = np.asarray(call.argument("x"), np.float64)
    size = np.abs(x) / np.sqrt(x.var(-1, keepdims=True) + call.argument("eps"))
    weight, bias = call.argument("weight"), call.argument("bias")
    size = size if weight is None else size * np.abs(weight.values())
    return np.asarray(size if bias is None else np.hypot(size, bias.values()), np.float64)


def _swiglu(call: Call) -> npt.NDArray[np.float64]:
    gate, up = (np.asarray(x, np.float64) for x in call.inputs)
    return SIGMOID * np.abs(gate * up)


_TERMS: dict[Callable[..., Array], Callable[[Call], npt.NDArray[np.float64]]] = {
    linear: _linear,
    scores: _scores,
    attend: _attend,
    add: _add,
    swiglu: _swiglu,
    layer_norm: _layer_norm,
}
