"""Making what was measured happen: calls whose operands, terms or results are changed at some places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import axes_of
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.statement import is_one, statement, these, where
from firstdiff.hypotheses.hypothesis import Scene, Values, with_op
from firstdiff.model.arithmetic import Array
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

RESULT = "result"
"""What an operation gives, where an operand's name would say what it reads."""

AXES = ("token", "query", "head", "key", "feature")
"""Axes of operands and results along which the places of a change are named."""

Make = Callable[[Array, tuple[str, ...]], Array | None]
"""Gives the changed numbers of an array with these axes; None where it does not have the places."""


def laid_out(x: Array, point: str) -> tuple[Array, tuple[str, ...]]:
    """An array as places are counted in it, and its axes: [token, feature], or [head, query, key] of scores.

    Heads lie side by side among the features.
    """
    axes = axes_of(point, x.ndim)
    if "query" in axes:
        return x, axes
    return x.reshape(len(x), -1), ("token", "feature")


def chosen(x: Array, axes: Sequence[str], values: Values) -> tuple[npt.NDArray[np.intp], ...] | None:
    """The indices of the places that are named; None where the array does not have them."""
    taken = []
    for axis, n in zip(axes, x.shape, strict=True):
        pattern = Pattern.read(values[axis]) if axis in values else None
        if pattern is not None and not pattern.fits(n):
            return None
        taken.append(np.arange(n) if pattern is None else pattern.among(n))
    return np.ix_(*taken)


def scaled(call: Call, _scene: Scene, values: Values) -> Call | None:
    """Numbers multiplied by a factor."""
    return _changed(call, values, lambda part, _: part * part.dtype.type(values["by"]))


def raised(call: Call, _scene: Scene, values: Values) -> Call | None:
    """A number added."""
    return _changed(call, values, lambda part, _: part + part.dtype.type(values["by"]))


def replaced_by(call: Call, scene: Scene, values: Values) -> Call | None:
    """Another tensor's numbers taken."""
    other = call.argument(values["other"]) if values["from"] == INPUT else _recorded(call, scene, values)
    if not isinstance(other, np.ndarray):
        return None
    flat = other if "query" in axes_of(call.point, other.ndim) else other.reshape(len(other), -1)

    def new(part: Array, at: tuple[npt.NDArray[np.intp], ...]) -> Array | None:
        return flat[at].astype(part.dtype) if flat.ndim == len(at) and _within(flat, at) else None

    return _changed(call, values, new)


INPUT, BEFORE = " (its input)", " of the layer before"


def _recorded(call: Call, scene: Scene, values: Values) -> Array | None:
    return scene.beside(call, values["other"], layers=-1 if values["from"] == BEFORE else 0)


def _within(x: Array, at: Sequence[npt.NDArray[np.intp]]) -> bool:
    return all(int(index.max(initial=0)) < n for index, n in zip(at, x.shape, strict=True))


def taken(call: Call, _scene: Scene, values: Values) -> Call | None:
    """Numbers taken from elsewhere along an axis: at each of some places those so many places further on."""

    def make(x: Array, axes: tuple[str, ...]) -> Array | None:
        axis = axes.index(values["axis"]) if values["axis"] in axes else x.ndim - 1
        order = order_of(values["moves"], x.shape[axis])
        at = chosen(x, axes, values)
        if order is None or at is None:
            return None
        y = np.array(x)
        y[at] = x.take(order, axis)[at]
        return y

    return _made(call, values["of"], make)


def order_of(moves: Sequence[Sequence[Any]], n: int) -> npt.NDArray[np.intp] | None:
    """The place that each number comes from; None where an axis of `n` does not have them."""
    order = np.arange(n)
    for written, by in moves:
        pattern = Pattern.read(written)
        at = pattern.among(n)
        if not pattern.fits(n) or not len(at) or (at + by).min() < 0 or (at + by).max() >= n:
            return None
        order[at] = at + by
    return order


def _changed(
    call: Call, values: Values, new: Callable[[Array, tuple[npt.NDArray[np.intp], ...]], Array | None]
) -> Call | None:
    def make(x: Array, axes: tuple[str, ...]) -> Array | None:
        at = chosen(x, axes, values)
        if at is None:
            return None
        y = np.array(x)
        part = new(x[at], at)
        if part is None:
            return None
        y[at] = part
        return y

    return _made(call, values["of"], make)


def _made(call: Call, of: str, make: Make) -> Call | None:
    """The call with a change made of its result or of an operand."""
    if of == RESULT:
        return _with_result(call, make)
    operand = call.argument(of)
    if isinstance(operand, Weight):
        if len(operand.shape) != 1:
            return None
        made = make(operand.values(), ("feature",))
        return None if made is None else call.with_arguments(**{of: replace(operand, dense=made)})
    if not isinstance(operand, np.ndarray):
        return None
    flat, axes = laid_out(operand, call.point)
    made = make(flat, axes)
    return None if made is None else call.with_arguments(**{of: made.reshape(operand.shape)})


def _with_result(call: Call, make: Make) -> Call:
    op, point = call.op, call.point

    def changed(*inputs: object, arithmetic: Any, **attributes: object) -> Array:  # noqa: ANN401 - an Arithmetic
        y = np.asarray(op(*inputs, arithmetic=arithmetic, **attributes))
        made = make(*laid_out(y, point))
        # A change that does not fit this result changes nothing: the fault cannot be seen here.
        return y if made is None else np.ascontiguousarray(made.reshape(y.shape).astype(y.dtype, copy=False))

    return with_op(call, Derived(op, changed, sizes=lambda size: size))


def operand(values: Values) -> str:
    """The operand in words, with the tensor that it is where that was recorded: ``the operand b (ffn_out)``."""
    named = f" ({values['named']})" if values.get("named") else ""
    return f"the operand {values['of']}{named}"


def _subject(values: Values) -> tuple[str, bool]:
    """What is wrong, as a sentence begins with it, and whether that is one thing."""
    places = where({axis: values[axis] for axis in AXES if axis in values})
    whole = "the result" if values["of"] == RESULT else operand(values)
    return (f"in {whole}, {places}", is_one(values)) if places else (whole, True)


def _scaled(values: Values) -> str:
    by, (what, one) = values["by"], _subject(values)
    if values["of"] != RESULT:
        are = "is" if one else "are"
        return f"{what} {are} treated as 0" if by == 0 else f"{what} {are} multiplied by {by:g} before the operation"
    if by == -1:
        return f"{what} {'has' if one else 'have'} the wrong sign"
    return f"{what} {'is' if one else 'are'} " + ("0" if by == 0 else f"{by:g} times what is right")


def _raised(values: Values) -> str:
    by, (what, one) = values["by"], _subject(values)
    return f"{what} {'is' if one else 'are'} too {'large' if by > 0 else 'small'} by {abs(by):g}"


def _replaced(values: Values) -> str:
    what, one = _subject(values)
    return f"{what} {'holds' if one else 'hold'} the numbers of {values['other']}{values['from']}"


def _taken(values: Values) -> str:
    axis, moves = values["axis"], values["moves"]
    rest = where({name: values[name] for name in AXES if name in values})
    of = "" if values["of"] == RESULT else f" of {operand(values)}"
    within = f" (in {rest})" if rest else ""
    if len(moves) == PAIR and _swap(*moves):
        (one, _), (other, _) = moves
        return f"{these(axis, one)} and {other}{of} are exchanged{within}"
    told = ", and ".join(
        f"{these(axis, places)}{of} {'holds' if places.isdigit() else 'hold'} the numbers of the {axis} "
        f"{abs(by)} {'after' if by > 0 else 'before'}"
        for places, by in moves
    )
    return f"{told}{within}"


PAIR = 2


def _swap(one: tuple[str, int], other: tuple[str, int]) -> bool:
    """Whether two ranges hold each other's numbers."""
    (first, by), (second, back) = one, other
    (((start, stop), *_), ((start_, stop_), *_)) = Pattern.read(first).runs, Pattern.read(second).runs
    return by == -back and start + by == start_ and stop + by == stop_


INDICES = "check the indices by which these numbers are read and written: strides, gathers, views"

STATEMENTS = (
    statement("measured-scaled", "some numbers are multiplied by a factor", scaled, _scaled),
    statement("measured-raised", "a number is added at some places", raised, _raised),
    statement("measured-taken", "some numbers are taken from other places", taken, _taken, INDICES),
    statement("measured-replaced", "another tensor's numbers stand at some places", replaced_by, _replaced),
)
