"""Hypotheses: named, executable ways of being wrong. What can be planted can be found, with one table.

Each changes the call of one operation: its attributes, its inputs, its weight, or the operation itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import Operation, add
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

Change = Callable[[Call, Model], Call | None]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One way of being wrong.

    Parameters
    ----------
    id
        As in ``firstdiff demo --bug ID``.
    points
        Where it applies.
    says
        What is wrong, in one plain phrase.
    change
        Makes the wrong call of a right one; None where it does not apply to that call.
    """

    id: str
    points: tuple[str, ...]
    says: str
    change: Change

    @property
    def outside_layers(self) -> bool:
        """Whether it is at home outside the layers, so that asking for a layer means nothing."""
        return set(self.points) <= {"embd", "result_norm", "result_output"}

    def apply(self, call: Call, model: Model) -> Call | None:
        """The call gone wrong, or None where the hypothesis does not apply."""
        return self.change(call, model) if call.point in self.points else None


DEFAULT_BASE, LLAMA_3_BASE = 10000.0, 500000.0  # of the paper, and of Llama 3

PRODUCTS = ("Qcur", "Kcur", "Vcur", "attn_out", "ffn_gate", "ffn_up", "ffn_out")


def _attribute(name: str, wrong: Callable[[Any], Any]) -> Change:
    def change(call: Call, _: Model) -> Call:
        return replace(call, attributes=call.attributes | {name: wrong(call.attributes.get(name))})

    return change


def _input(call: Call, index: int, value: object) -> Call:
    return replace(call, inputs=(*call.inputs[:index], value, *call.inputs[index + 1 :]))


def _weight(wrong: Callable[[Weight], Weight | None]) -> Change:
    def change(call: Call, _: Model) -> Call | None:
        weight = wrong(call.inputs[1])
        return None if weight is None else _input(call, 1, weight)

    return change


def _raw(kinds: tuple[str, ...], wrong: Callable[[npt.NDArray[np.uint8]], None]) -> Change:
    """A change of the raw blocks [block, bytes] of weights of some types, made in place on a copy."""

    def change(weight: Weight) -> Weight | None:
        if weight.kind.name not in kinds:
            return None
        blocks = weight.raw.reshape(-1, weight.kind.nbytes).copy()
        wrong(blocks)
        return replace(weight, raw=blocks.reshape(-1))

    return _weight(change)


def _no_weight(call: Call, _: Model) -> Call:
    return _input(call, 1, None)


def _positions_restart(call: Call, _: Model) -> Call | None:
    return _input(call, 1, range(len(call.inputs[1]))) if call.step else None


def _transposed(weight: Weight) -> Weight | None:
    if weight.shape[0] != weight.shape[-1]:
        return None
    return replace(weight, dense=np.ascontiguousarray(weight.values().T))


def _reinterpreted(weight: Weight) -> Weight:
    # The buffer [out, in] is read as [in, out] and multiplied as x @ W.
    return replace(weight, dense=np.ascontiguousarray(weight.values().reshape(weight.shape[::-1]).T))


def _gate_for_up(call: Call, model: Model) -> Call:
    other = {"ffn_gate": "ffn_up.weight", "ffn_up": "ffn_gate.weight"}[call.point]
    assert call.layer is not None
    return _input(call, 1, model.weights.layer(call.layer)[other])


def _heads_in_turn(call: Call, model: Model) -> Call | None:
    """Head h reads KV head h mod n_head_kv in place of h // group."""
    heads, kv = model.hp.n_head, model.hp.n_head_kv
    if kv in (1, heads):
        return None
    order = np.argsort(np.arange(heads) % kv, kind="stable")  # query heads, grouped by the KV head they read
    axis = 1 if call.point == "kq" else 0
    return replace(call, op=_permuted(call.op, order, axis, head_dim=model.hp.head_dim))


def _permuted(op: Operation, order: npt.NDArray[np.int64], axis: int, *, head_dim: int) -> Operation:
    def permuted(first: Array, second: Array, *, group: int, arithmetic: Arithmetic) -> Array:
        y = op(np.take(first, order, axis), second, group=group, arithmetic=arithmetic)
        if axis == 1:  # scores: [H, T, S]
            return y[np.argsort(order)]
        heads = y.reshape(y.shape[0], -1, head_dim)  # attend: [T, H * D]
        return np.ascontiguousarray(heads[:, np.argsort(order)]).reshape(y.shape)

    return permuted


def _clipped(call: Call, _: Model) -> Call:
    return replace(call, op=_clipped_add)


def _clipped_add(a: Array, b: Array, *, arithmetic: Arithmetic) -> Array:
    x = add(a, b, arithmetic=arithmetic)
    # 10 is what was seen in the wild; where nothing is that large, a bound that bites.
    bound = min(10.0, float(np.abs(x).max()) / 2)
    return np.clip(x, -bound, bound)


def _skipped(call: Call, _: Model) -> Call:
    return replace(call, op=_identity, inputs=call.inputs[:1], attributes={})


def _identity(x: Array, *, arithmetic: Arithmetic) -> Array:
    return arithmetic.widen(x).copy()


def _nibble_pairs(blocks: npt.NDArray[np.uint8]) -> None:
    """Codes (2i, 2i + 1) of a byte in place of (i, i + 16): the bytes that, read rightly, give the wrong values."""
    codes = blocks[:, 4:]
    pairs = np.stack([codes & 15, codes >> 4], -1).reshape(len(blocks), 32)
    blocks[:, 4:] = pairs[:, :16] | (pairs[:, 16:] << 4)


def _no_minimum(blocks: npt.NDArray[np.uint8]) -> None:
    blocks[:, 2:4] = 0


TABLE: dict[str, Hypothesis] = {
    h.id: h
    for h in (
        Hypothesis(
            "rope-pairing",
            ("Qcur_rope", "Kcur_rope"),
            "dimensions paired half-split in place of interleaved",
            _attribute("pairing", lambda p: "half" if p == "interleaved" else "interleaved"),
        ),
        Hypothesis(
            "rope-base",
            ("Qcur_rope", "Kcur_rope"),
            "a rope base that is not the file's",
            _attribute("base", lambda b: LLAMA_3_BASE if b == DEFAULT_BASE else DEFAULT_BASE),
        ),
        Hypothesis(
            "rope-position",
            ("Qcur_rope", "Kcur_rope"),
            "positions that start from 0 again at each decode step",
            _positions_restart,
        ),
        Hypothesis(
            "norm-eps",
            ("attn_norm", "ffn_norm", "result_norm"),
            "an epsilon of 1e-6 in place of 1e-5, or the reverse",
            _attribute("eps", lambda e: 1e-5 if np.isclose(e, 1e-6) else 1e-6),
        ),
        Hypothesis(
            "norm-weight-missing",
            ("attn_norm", "ffn_norm", "result_norm"),
            "a norm without its weight",
            _no_weight,
        ),
        Hypothesis(
            "weight-transposed",
            PRODUCTS,
            "a square weight in place of its transpose",
            _weight(_transposed),
        ),
        Hypothesis(
            "weight-reinterpreted",
            PRODUCTS,
            "a weight's row-major buffer read with its dimensions in the other order",
            _weight(_reinterpreted),
        ),
        Hypothesis("weight-swapped", ("ffn_gate", "ffn_up"), "gate and up exchanged", _gate_for_up),
        Hypothesis(
            "gqa-map",
            ("kq", "kqv_out"),
            "head h reads KV head h mod n_head_kv in place of h // group",
            _heads_in_turn,
        ),
        Hypothesis(
            "scale-missing",
            ("kq_soft_max",),
            "scores without their factor 1 / sqrt(head_dim)",
            _attribute("scale", lambda _: 1.0),
        ),
        Hypothesis(
            "mask-offset",
            ("kq_soft_max",),
            "a causal mask that lets each token see the next one",
            _attribute("offset", lambda _: 1),
        ),
        Hypothesis("residual-clipped", ("ffn_inp", "l_out"), "a residual stream clipped at a bound", _clipped),
        Hypothesis("final-norm-missing", ("result_norm",), "no norm before the output matrix", _skipped),
        Hypothesis(
            "head-transposed",
            ("result_output",),
            "the output matrix read as [hidden, vocab] in place of [vocab, hidden]",
            _weight(_reinterpreted),
        ),
        Hypothesis(
            "nibble-order",
            PRODUCTS,
            "codes of Q4_1 paired (2i, 2i + 1) in place of (i, i + 16)",
            _raw(("Q4_1",), _nibble_pairs),
        ),
        Hypothesis("min-missing", PRODUCTS, "the minimum of Q4_1 blocks ignored", _raw(("Q4_1",), _no_minimum)),
    )
}
