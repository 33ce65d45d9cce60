"""Sums that are kept in few bits: how many terms are added at a time, in which order, and what is kept in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.roundings import LARGE
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import attend, scores
from firstdiff.model.operations import Derived, Operation, linear
from firstdiff.model.probe import Call
from firstdiff.model.rounding import round_to

Indices = npt.NDArray[np.intp]

EACH = (1, 8, 16, 32, 64, 128, 256)
"""How many terms are added before the sum is rounded."""

KEPT = {"f16": "float16", "bf16": "bfloat16"}
"""What the sum is kept in."""

FORWARDS, APART, BACKWARDS, LANES = "forwards", "apart", "backwards", "lanes"
"""Parts added to a sum that is rounded after each, from the first term on or from the last; each part rounded and the
parts added in float32; and parts that take every so many terms, as the lanes of a vector register do."""

SHORT = 1024
"""Terms up to which it is tried whether the sum is rounded after each."""


@dataclass(frozen=True, slots=True)
class _Sum:
    """The terms that an operation adds: their name, how many they are, and the call on some of them alone."""

    term: str
    count: Callable[[Call], int]
    some: Callable[[Call, Indices], Call]


def _inputs(call: Call, at: Indices) -> Call:
    weight = call.argument("weight")
    columns = np.ascontiguousarray(weight.values()[:, at])
    return call.with_arguments(
        x=call.argument("x")[:, at], weight=replace(weight, dense=columns, shape=columns.shape), bias=None, heads=None
    )


def _dimensions(call: Call, at: Indices) -> Call:
    return call.with_arguments(q=call.argument("q")[..., at], keys=call.argument("keys")[..., at])


def _keys(call: Call, at: Indices) -> Call:
    return call.with_arguments(p=np.asarray(call.argument("p"))[..., at], values=call.argument("values")[at])


_SUMS: dict[Operation, _Sum] = {
    linear: _Sum("inputs", lambda call: int(call.argument("x").shape[-1]), _inputs),
    scores: _Sum("dimensions", lambda call: int(call.argument("q").shape[-1]), _dimensions),
    attend: _Sum("keys", lambda call: int(call.argument("p").shape[-1]), _keys),
}


def kept_sums(view: View) -> Iterator[Found]:
    """Each way of keeping a sum in few bits; what each leaves is not known before it is tried."""
    call, of = view.call, _SUMS.get(view.call.op)
    if of is None or view.case.error > LARGE or (call.op is linear and _of_integers(view)):
        return
    count = of.count(call)
    for each in EACH:
        if each < count and (each > 1 or count <= SHORT):
            for kept in KEPT:
                for order in (FORWARDS, BACKWARDS) if each == 1 else (FORWARDS, APART, BACKWARDS, LANES):
                    yield Found("measured-sum", {"each": each, "kept": kept, "order": order, "of": of.term}, 0.0)


def _of_integers(view: View) -> bool:
    return view.scene.arithmetic.ggml_products and view.call.argument("weight").kind.block > 1


def sum_kept(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The call with its sum kept in few bits; None where it has no more terms than are added at a time."""
    of = _SUMS.get(call.op)
    if of is None or not values["each"] < of.count(call):
        return None

    def added_up(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
        own = replace(call, inputs=inputs, attributes=attributes)
        if call.op is linear:  # decoded once for all parts
            weight = own.argument("weight")
            own = own.with_arguments(weight=replace(weight, dense=weight.values()))
        parts = (of.some(own, at).compute(arithmetic) for at in _parts(of.count(own), values))
        total = _added(parts, values)
        if call.op is not linear:
            return arithmetic.widen(total)
        bias, heads = own.argument("bias"), own.argument("heads")
        if bias is not None:
            total = total + arithmetic.keep(arithmetic.widen(bias.values()))
        return arithmetic.widen(total if heads is None else total.reshape(len(total), heads, -1))

    return replace(call, op=Derived(call.op, added_up, rowwise=call.op is linear))


def _parts(count: int, values: Values) -> list[Indices]:
    """The terms of each part, in the order in which the parts are added."""
    each = values["each"]
    if values["order"] == LANES:
        lanes = -(-count // each)
        return [np.arange(lane, count, lanes) for lane in range(lanes)]
    parts = [np.arange(start, min(count, start + each)) for start in range(0, count, each)]
    return parts[::-1] if values["order"] == BACKWARDS else parts


def _added(parts: Iterator[Array], values: Values) -> Array:
    total: Array = np.zeros((), np.float32)
    for part in parts:
        if values["order"] == APART:
            total = total + round_to(np.asarray(part, np.float32), values["kept"])
        else:
            total = round_to(np.asarray(total + part, np.float32), values["kept"])
    return np.asarray(total)


def _kept(values: Values) -> str:
    each, of, kept = values["each"], values["of"], KEPT[values["kept"]]
    if values["order"] == APART:
        return f"the sum of each {each} {of} is rounded to {kept} before these sums are added"
    after = "each product" if each == 1 else f"each {each} {of}"
    if values["order"] == LANES:
        return f"the sum is rounded to {kept} after each {each} {of}, which are taken at equal distances"
    backwards = ", from the last one to the first" if values["order"] == BACKWARDS else ""
    return f"the sum is rounded to {kept} after {after}{backwards}"


STATEMENTS = (
    statement(
        "measured-sum",
        "a sum is kept in few bits",
        sum_kept,
        _kept,
        "keep the sum in float32: other layers do",
    ),
)
