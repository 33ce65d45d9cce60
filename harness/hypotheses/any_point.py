"""Right operations on wrong data, or in another arithmetic: what can happen at any point."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, telling, with_op
from firstdiff.hypotheses.products import rowwise
from firstdiff.hypotheses.where import ANY
from firstdiff.model.arithmetic import ARITHMETICS, Arithmetic, Array
from firstdiff.model.operations import Derived, Operation, linear
from firstdiff.model.probe import Call

LAST, BEFORE = 9, " of the layer before"


def _instead(call: Call, scene: Scene, values: Values) -> Call | None:
    other = scene.beside(call, values["point"], layers=-1 if values["of"] else 0)
    own = call.argument(values["input"])
    if other is None or not isinstance(own, np.ndarray) or other.shape != own.shape or not telling(other):
        return None
    return call.with_arguments(**{values["input"]: other})


def _others(call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    """What was there already when the operation ran: earlier points of the layer, and the layer before."""
    for name, own in call.arguments.items():
        if not isinstance(own, np.ndarray) or own.ndim == 1:
            continue
        known = [own]  # what a cache holds is what was written to it, say
        for of, layers in (("", 0), (BEFORE, -1)):
            for point in scene.before(call, layers=layers):
                other = scene.beside(call, point, layers=layers)
                if other is None or other.shape != own.shape:
                    continue
                if not any(np.array_equal(other, x, equal_nan=True) for x in known):  # rows may be missing
                    known.append(other)
                    yield {"input": name, "point": point, "of": of}


def _computed_in(call: Call, _scene: Scene, values: Values) -> Call:
    return with_op(call, _in(call.op, ARITHMETICS[values["arithmetic"]]))


def _in(op: Operation, other: Arithmetic) -> Operation:
    def computed(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
        return arithmetic.widen(other.keep(op(*inputs, arithmetic=other, **attributes)))

    return Derived(op, computed, sizes=lambda size: size, rowwise=op is linear)


def _arithmetics(_call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    for name, other in ARITHMETICS.items():
        if name not in ("f64", "f32") and other != scene.arithmetic:
            yield {"arithmetic": name}


def _unwritten(call: Call, _scene: Scene, _values: Values) -> Call | None:
    if any(isinstance(x, np.ndarray) and not x.any() for x in call.inputs):
        return None  # zeros of zeros say nothing
    op = call.op
    return with_op(call, Derived(op, partial(_zero, op), sizes=np.zeros_like, rowwise=rowwise(op)))


def _zero(op: Operation, *inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
    """Zeros in the shape of what an operation gives."""
    return np.zeros_like(op(*inputs, arithmetic=arithmetic, **attributes))


TABLE = (
    Hypothesis(
        "output-zero",
        ANY,
        "the result never written: it is exactly 0",
        "see that the kernel runs for this shape and phase: one that is compiled for another width or number of tokens"
        " may not be taken up at all",
        _unwritten,
        stage=LAST - 1,
        source="Xilinx/mlir-air#1916",
    ),
    Hypothesis(
        "wrong-input",
        ANY,
        "another tensor taken as input",
        "give the operation its own input",
        _instead,
        _others,
        "{point}{of} taken as input {input}",
        stage=LAST - 1,
    ),
    Hypothesis(
        "other-arithmetic",
        ANY,
        "computed in another arithmetic than the rest",
        "compute it as the same point of the other layers is computed",
        _computed_in,
        _arithmetics,
        "computed in {arithmetic}, unlike the rest",
        stage=LAST,
        everywhere="arithmetic",
        rounds=True,
    ),
)
