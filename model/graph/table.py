"""ggml's operations: which function computes each, with which attributes, and how large the terms of results are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.errors import ModelError
from firstdiff.model.graph import attention, elementwise, moves, products, rows, states
from firstdiff.model.graph.nodes import Node, Numbers, stored
from firstdiff.model.operations import Operation, layer_norm
from firstdiff.model.weights import Weight

Attributes = Callable[[Node], dict[str, Any]]
Sizes = Callable[..., Array]


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a node is computed.

    Parameters
    ----------
    op
        Computes it of what it reads.
    attributes
        Its keywords, of ``op_params`` and shapes.
    sizes
        How large the terms are that each number is a sum of, of the same operands and keywords: the root of the sum of
        their squares, or more where parts of it are summed apart. None where it is no sum that can cancel.
    selects
        Whether it gives places of numbers: right are all that hold the same numbers.
    """

    op: Callable[..., Numbers]
    attributes: Attributes = lambda _: {}
    sizes: Sizes | None = None
    selects: bool = False


def _shape(node: Node) -> dict[str, Any]:
    return {"shape": node.tensor.shape}


def _kind(node: Node, place: int) -> str:
    source = node.sources[place]
    assert source is not None
    return source.kind.name


def _sum(a: Array, b: Array, **_: object) -> Array:
    with np.errstate(all="ignore"):
        return np.maximum(np.abs(a), np.abs(elementwise.tiled(b, a.shape)))


def _of_magnitudes(op: Operation) -> Sizes:
    """The terms of a sum are as large as the sum of their magnitudes."""
    return lambda x, **attributes: op(np.abs(x), **attributes)


def _centred(x: Array, *, eps: float, **_: object) -> Array:
    wide = np.asarray(x, np.float64)
    variance = wide.var(-1, keepdims=True)
    return np.asarray(np.abs(wide) / np.sqrt(variance + eps))


def _product_sizes(w: Weight | Array, x: Array, *, turned: bool = False, **_: object) -> Array:
    if turned:
        return np.broadcast_to(np.sqrt(np.square(x).mean(-1, keepdims=True)), x.shape)
    wide, w = np.asarray(x, np.float64), products.matrix(w)
    if not isinstance(w, Weight):
        of = np.square(products.repeated(w, x), dtype=np.float64)
        return np.asarray(np.sqrt(np.matmul(wide**2, np.swapaxes(of, -1, -2))))
    if len(w.shape) > 2:  # noqa: PLR2004 - a matrix for each head
        group = x.shape[1] // w.shape[0]
        heads = [_product_sizes(products.expert(w, h // group), x[:, h : h + 1]) for h in range(x.shape[1])]
        return np.concatenate(heads, 1)
    size = np.empty((*x.shape[:3], w.shape[0]))
    for start, stop in w.chunks():
        rows_ = w.rows(start, stop).astype(np.float64)
        part = np.sqrt(wide**2 @ (rows_**2).T)
        minima = w.minimum_of_each(start, stop)
        if minima is not None:  # codes and minima are summed apart, and can cancel
            part = np.maximum(part, np.abs(wide @ (rows_ - minima).T) + np.abs(wide @ minima.T))
        size[..., start:stop] = part
    return size


def _expert_sizes(w: Weight | Array, x: Array, ids: Array, **_: object) -> Array:
    chosen = ids[0, 0]
    wide = np.broadcast_to(x[0], (*chosen.shape, x.shape[-1]))
    y = np.empty((1, *chosen.shape, w.shape[-2]))
    for number in np.unique(chosen):
        at = chosen == number
        of = products.expert(w, int(number)) if isinstance(w, Weight) else w[:, int(number)][None]
        y[0][at] = _product_sizes(of, np.ascontiguousarray(wide[at])[None, None])[0, 0]
    return y


def _scaled_sizes(x: Array, *, by: float, plus: float, **_: object) -> Array:
    return np.asarray(np.maximum(np.abs(x * by), abs(plus)))


def _rotation(node: Node) -> dict[str, Any]:
    p = node.params
    names = ("base", "freq_scale", "ext", "magnitude", "fast", "slow")
    return {
        "dims": p[1],
        "mode": p[2],
        "context": p[4],
        **{name: float(node.number(5 + i)) for i, name in enumerate(names)},
        "sections": p[11:15],
        "start": p[15],
        "back": node.op == "ROPE_BACK",
    }


def _gate(node: Node) -> dict[str, Any]:
    return {"swapped": bool(node.params[1])}


def _state(node: Node) -> dict[str, Any]:
    return {"kept": node.params[0], **_shape(node)}


def _eps(node: Node) -> dict[str, Any]:
    return {"eps": float(node.number(0))}


KERNELS: Mapping[str, Kernel] = {
    **{name: Kernel(op) for name, op in elementwise.SIMPLE.items()},
    "ADD": Kernel(elementwise.ADD, sizes=_sum),
    "SUB": Kernel(elementwise.SUB, sizes=_sum),
    "MUL": Kernel(elementwise.MUL),
    "DIV": Kernel(elementwise.DIV),
    "SCALE": Kernel(elementwise.scale, lambda n: {"by": float(n.number(0)), "plus": float(n.number(1))}, _scaled_sizes),
    "CLAMP": Kernel(elementwise.clamp, lambda n: {"least": float(n.number(0)), "most": float(n.number(1))}),
    "XIELU": Kernel(
        elementwise.xielu,
        lambda n: {name: float(n.number(i + 1)) for i, name in enumerate(("alpha_n", "alpha_p", "beta", "eps"))},
    ),
    **{name: Kernel(elementwise.gate, lambda n: {"kind": n.op, **_gate(n)}) for name in elementwise.GATES},
    "SWIGLU_OAI": Kernel(
        elementwise.gate_oai, lambda n: {"alpha": float(n.number(2)), "limit": float(n.number(3)), **_gate(n)}
    ),
    "SWIGLU_CLAMP": Kernel(elementwise.gate_clamped, lambda n: {"limit": float(n.number(3)), **_gate(n)}),
    "RMS_NORM": Kernel(rows.rms_norm, _eps),
    "NORM": Kernel(layer_norm, lambda n: {"weight": None, **_eps(n)}, _centred),
    "L2_NORM": Kernel(rows.l2_norm, _eps),
    "SOFT_MAX": Kernel(rows.soft_max, lambda n: {"scale": float(n.number(0)), "bias": float(n.number(1))}),
    "SUM_ROWS": Kernel(rows.sum_rows, sizes=_of_magnitudes(rows.sum_rows)),
    "MEAN": Kernel(rows.mean, sizes=_of_magnitudes(rows.mean)),
    "ROPE": Kernel(rows.rope, _rotation),
    "ROPE_BACK": Kernel(rows.rope, _rotation),
    "MUL_MAT": Kernel(products.mul_mat, lambda n: {"kind": _kind(n, 0), "turned": n.params[1] == 1}, _product_sizes),
    "MUL_MAT_ID": Kernel(products.mul_mat_id, lambda n: {"kind": _kind(n, 0)}, _expert_sizes),
    "ADD_ID": Kernel(products.add_id),
    "FLASH_ATTN_EXT": Kernel(
        attention.flash_attention,
        lambda n: {
            **{name: float(n.number(i)) for i, name in enumerate(("scale", "bias", "cap"))},
            "keys": _kind(n, 1),
            "values": _kind(n, 2),
        },
        attention.attention_sizes,
    ),
    "GET_ROWS": Kernel(moves.get_rows),
    "SET_ROWS": Kernel(moves.set_rows),
    **{name: Kernel(moves.copied, _shape) for name in ("CPY", "CONT")},
    "CONCAT": Kernel(moves.concat, lambda n: {"axis": n.params[0]}),
    "REPEAT": Kernel(moves.repeat, _shape),
    "ARGSORT": Kernel(moves.argsort, lambda n: {"descending": n.params[0] == 1}, selects=True),
    "TOP_K": Kernel(moves.top_k, lambda n: {"k": n.tensor.shape[3]}, selects=True),
    "ARANGE": Kernel(moves.arange, lambda n: {"first": float(n.number(0)), "step": float(n.number(2)), **_shape(n)}),
    "FILL": Kernel(moves.fill, lambda n: {"value": float(n.number(0)), **_shape(n)}),
    "SSM_CONV": Kernel(states.ssm_conv, lambda n: {"tokens": n.tensor.shape[2]}, states.ssm_conv_sizes),
    "SSM_SCAN": Kernel(states.ssm_scan, _state, partial(states.ssm_scan, sizes=True)),
    "GATED_DELTA_NET": Kernel(states.gated_delta_net, _state, partial(states.gated_delta_net, sizes=True)),
    "RWKV_WKV6": Kernel(states.wkv6, _shape, partial(states.wkv6, sizes=True)),
    "RWKV_WKV7": Kernel(states.wkv7, _shape, partial(states.wkv7, sizes=True)),
    "GATED_LINEAR_ATTN": Kernel(
        states.gated_linear_attention,
        lambda n: {"scale": float(n.number(0)), **_shape(n)},
        partial(states.gated_linear_attention, sizes=True),
    ),
    "LIGHTNING_INDEXER": Kernel(states.lightning_indexer, sizes=states.lightning_indexer_sizes),
    "DSV4_HC_COMB": Kernel(states.hyper_connection_mix, lambda n: {"eps": float(n.number(0)), "rounds": n.params[1]}),
    "DSV4_HC_PRE": Kernel(
        states.hyper_connection_in,
        lambda n: {"scale": float(n.number(0)), "gated": bool(n.params[1])},
        states.hyper_connection_in_sizes,
    ),
    "DSV4_HC_POST": Kernel(states.hyper_connection_out),
}
"""Every operation that is known: those that the architectures of tests/data/architectures.json run on the CPU."""

STATES: Mapping[str, tuple[int, int]] = {
    "SSM_SCAN": (1, 0),
    "GATED_DELTA_NET": (2, 5),
    "RWKV_WKV6": (1, 5),
    "RWKV_WKV7": (3, 6),
    "GATED_LINEAR_ATTN": (1, 4),
}
"""Operations that give outputs and then states: the operand that is shaped as the outputs, and that with the states."""

BY_ROWS = frozenset(("MUL_MAT", "MUL_MAT_ID", "GET_ROWS"))
"""Operations that decode a weight a few rows at a time."""


def operands(node: Node, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """What a node reads as its operation takes it: weights decoded, but where it decodes them itself."""
    if node.op in BY_ROWS:
        return tuple(inputs)
    return tuple(products.dense(x) if isinstance(x, Weight) else x for x in inputs)


def computed(node: Node, inputs: Sequence[Any], arithmetic: Arithmetic) -> Numbers:
    """What a node gives for its :func:`operands`, as its type holds it.

    Raises
    ------
    ModelError
        For an operation that is not known, or a type to which nobody knows how ggml rounds.
    """
    if node.op not in KERNELS:
        raise ModelError(f"firstdiff does not compute llama.cpp's operation {node.op} yet")
    kernel = KERNELS[node.op]
    with np.errstate(all="ignore"):
        if node.op == "SET_ROWS":  # of what is there already nothing is rounded again
            inputs = (stored(inputs[0], node.tensor.kind), *inputs[1:])
            return kernel.op(*inputs, arithmetic=arithmetic)
        return stored(kernel.op(*inputs, arithmetic=arithmetic, **kernel.attributes(node)), node.tensor.kind)
