"""Right operations on wrong data, or in another arithmetic: what can happen at any point."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstdiff.dumps.points import POINTS
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, with_input, with_op
from firstdiff.model.arithmetic import ARITHMETICS, Arithmetic, Array
from firstdiff.model.operations import Operation, linear
from firstdiff.model.probe import Call

ORDER = tuple(POINTS)  # of execution
LAST, BEFORE = 9, " of the layer before"


def _instead(call: Call, scene: Scene, values: Values) -> Call | None:
    other = scene.beside(call, values["point"], layers=-1 if values["of"] else 0)
    own = call.inputs[values["input"]] if values["input"] < len(call.inputs) else None
    if other is None or not isinstance(own, np.ndarray) or other.shape != own.shape:
        return None
    return with_input(call, values["input"], other)


def _others(call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, object]]:
    """What was there already when the operation ran: the layer's earlier points, and the layer before."""
    for index, own in enumerate(call.inputs):
        if not isinstance(own, np.ndarray) or own.ndim == 1:
            continue
        for of, points in (("", ORDER[: ORDER.index(call.point)]), (BEFORE, ORDER)):
            for point in points:
                other = scene.beside(call, point, layers=-1 if of else 0)
                if other is not None and other.shape == own.shape and not np.array_equal(other, own):
                    yield {"input": index, "point": point, "of": of}


def _computed_in(call: Call, _scene: Scene, values: Values) -> Call:
    return with_op(call, _in(call.op, ARITHMETICS[values["arithmetic"]]))


def _in(op: Operation, other: Arithmetic) -> Operation:
    def computed(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
        return arithmetic.widen(other.keep(op(*inputs, arithmetic=other, **attributes)))

    computed.rowwise = op is linear  # type: ignore[attr-defined]
    computed.sums = op  # type: ignore[attr-defined]
    return computed


def _arithmetics(_call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    for name, other in ARITHMETICS.items():
        if name not in ("f64", "f32") and other != scene.arithmetic:
            yield {"arithmetic": name}


LAYER = tuple(p for p in ORDER if p != "embd")

TABLE = (
    Hypothesis(
        "wrong-input",
        LAYER,
        "another tensor taken as input",
        "give the operation its own input",
        _instead,
        _others,
        "{point}{of} taken as input {input}",
        stage=LAST - 1,
    ),
    Hypothesis(
        "other-arithmetic",
        ORDER,
        "computed in another arithmetic than the rest",
        "compute it as the same point of the other layers is computed",
        _computed_in,
        _arithmetics,
        "computed in {arithmetic}, unlike the rest",
        stage=LAST,
    ),
)
