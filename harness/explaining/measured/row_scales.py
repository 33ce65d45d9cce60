"""How a norm scaled its rows and its features, by its result over its input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.numbers import stated
from firstdiff.explaining.measured.places import LITTLE, TAKES
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values, with_op
from firstdiff.model.arithmetic import F64, Arithmetic, Array
from firstdiff.model.operations import Derived, layer_norm, rms_norm
from firstdiff.model.probe import Call

Floats = npt.NDArray[np.float64]


def other_vectors(view: View) -> Iterator[Found]:
    """A norm's weight that is another vector of the file, its own square, or ones."""
    call = view.call
    if call.op not in (rms_norm, layer_norm) or call.argument("weight") is None:
        return
    weight = call.argument("weight")
    n = weight.shape[-1]
    own = weight.values().astype(np.float64)
    x = np.asarray(call.argument("x"), np.float64)
    bare = call.op(x, None, eps=call.argument("eps"), arithmetic=F64)[view.rows].reshape(-1, n)
    given, scale = (view.result + view.error).reshape(-1, n), np.repeat(view.scale, len(bare) // len(view.rows), 0)
    size = np.square(bare * scale).sum(0)
    seen = (bare * given * scale**2).sum(0) / np.where(size > 0, size, 1)
    energy = float((size * np.square(seen - own)).sum())
    total = float(np.square(view.error * view.scale).sum())
    if energy < 0.9 * total:
        return

    def left(vector: Floats) -> float:
        return float((size * np.square(seen - vector)).sum()) + total - energy

    shapes = {"ones": np.ones(n), "its square": own**2}
    for name, vector in shapes.items():
        if left(vector) <= total / TAKES:
            yield Found("measured-vector", {"vector": name}, left(vector))
    for name, info in view.scene.model.gguf.tensors.items():
        if info.shape == (n,) and name != weight.name:
            vector = view.scene.model.weights[name].values().astype(np.float64)
            if left(vector) <= total / TAKES:
                yield Found("measured-vector", {"vector": name}, left(vector))


def vector_replaced(call: Call, scene: Scene, values: Values) -> Call | None:
    """The norm with another vector in the place of its weight."""
    weight, name = call.argument("weight"), values["vector"]
    if weight is None:
        return None
    if name == "ones":
        return call.with_arguments(weight=replace(weight, dense=np.ones(weight.shape, np.float32)))
    if name == "its square":
        return call.with_arguments(weight=replace(weight, dense=weight.values() ** 2))
    other = scene.model.weights.get(name)
    if other is None or other.shape != weight.shape:
        return None
    return call.with_arguments(weight=replace(weight, dense=other.values()))


def scaled_rows(view: View) -> Iterator[Found]:
    """Each token's result times a number of its own, which goes with a power of what the row's scale is made of."""
    call = view.call
    if view.token_axis or len(view.rows) < 4 or call.op is not rms_norm:  # noqa: PLR2004
        return
    x = np.asarray(call.argument("x"), np.float64)[view.rows]
    heads = int(np.prod(x.shape[1:-1]))
    result = view.result.reshape(len(x) * heads, -1)
    given = result + view.error.reshape(result.shape)
    size = np.square(result).sum(-1)
    factor = (result * given).sum(-1) / np.where(size > 0, size, 1)
    off = given - factor[:, None] * result
    scale = np.repeat(view.scale, heads, 0)
    total = float(np.square(view.error * view.scale).sum())
    if float(np.square(off * scale).sum()) > total / TAKES or (factor <= 0).any():
        return
    mean = np.square(x).mean(-1).reshape(-1) + call.argument("eps")
    log, by = np.log(factor), np.log(mean)
    if np.ptp(by) < 0.1:  # noqa: PLR2004 - rows that are alike show no power
        return
    slope = float(((by - by.mean()) * (log - log.mean())).sum() / np.square(by - by.mean()).sum())
    rest = log - log.mean() - slope * (by - by.mean())
    error = float(np.sqrt(np.square(rest).mean() / np.square(by - by.mean()).sum()))
    power = stated(slope, error)
    times = float(np.exp((log - power * by).mean()))
    together = float(np.sqrt(np.mean(mean)))
    how = "all" if abs(power - 0.5) < 1e-3 and abs(times * together - 1) < 1e-2 else "power"  # noqa: PLR2004
    values: dict[str, Any] = (
        {"mean": "all"}
        if how == "all"
        else {
            "mean": "power",
            "power": power,
            "times": stated(times, max(error, 1e-7) * times),
        }
    )
    if abs(power) >= LITTLE:
        yield Found("measured-row-scale", values, float(np.square(off * scale).sum()))


def rows_scaled(call: Call, _scene: Scene, values: Values) -> Call | None:
    """A norm whose rows are scaled otherwise: by one mean for all, or times a power of each one's own."""
    op = call.op

    def norm(x: Array, weight: Any, *, eps: float, arithmetic: Arithmetic, **_: Any) -> Array:  # noqa: ANN401
        y = op(x, weight, eps=eps, arithmetic=arithmetic)
        mean = np.square(np.asarray(x, np.float64)).mean(-1, keepdims=True) + eps
        together = values["mean"] == "all"
        factor = np.sqrt(mean / mean.mean()) if together else values["times"] * mean ** values["power"]
        return np.asarray(y * arithmetic.widen(factor))

    return with_op(call, Derived(op, norm))


def as_layer_norm(view: View) -> Iterator[Found]:
    """A norm that subtracts the mean."""
    if view.call.op is rms_norm:
        yield Found("measured-centred", {"mean": "subtracted"}, 0.0)


def centred(call: Call, _scene: Scene, _values: Values) -> Call | None:
    """The norm of rows less their mean."""
    return call.with_arguments(x=call.argument("x") - call.argument("x").mean(-1, keepdims=True))


def _row_scale(values: Values) -> str:
    if values["mean"] == "all":
        return "all tokens are divided by one root mean square, which is that of all of them together"
    return (
        f"each token's result is multiplied by {values['times']:g} times its mean square to the power of "
        f"{values['power']:g}"
    )


STATEMENTS = (
    statement(
        "measured-vector",
        "a norm's weight is another vector",
        vector_replaced,
        "the norm's weight is {vector} instead of its own",
        "load the norm's weight by its own name, and apply it once",
        ops=(rms_norm, layer_norm),
    ),
    statement(
        "measured-row-scale",
        "rows are scaled otherwise",
        rows_scaled,
        _row_scale,
        "divide each row by the root of its own mean of squares",
        ops=(rms_norm,),
    ),
    statement(
        "measured-centred",
        "a norm's rows are less their mean",
        centred,
        "each row's mean is {mean} before the norm",
        "subtract no mean: it is not a layer norm",
        ops=(rms_norm,),
    ),
)
