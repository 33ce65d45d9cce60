"""Which rows of which matrix of the file a product was made with, by its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.statement import Found, statement, these
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values
from firstdiff.hypotheses.products import spread
from firstdiff.hypotheses.weights import named
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

TOKENS, SAMPLED = 8, 48
"""Tokens that rows are told apart by, and wrong outputs whose row is sought first."""

LEAST = 3
"""Tokens without which many rows give one number."""

FOUND = 0.75
"""The part of the sampled outputs that must be rows of a matrix for all to be looked for in it."""

NOTHING = 1e-6
"""Below which part of a usual output's square an output is none."""

CLOSE = 1e-3
"""How far an output may be off from a row's, as squares: what f16 and bf16 leave is less."""

ROWS = 1 << 16
"""Rows of a matrix beyond which nothing is sought in it."""

LARGEST = 1 << 24
"""Numbers of a matrix beyond which it is not tried turned."""

AS_IT_IS, TURNED, READ = "", " turned", " read as one of the other shape"
"""How the own matrix is read: as it is; its memory as that of the transposed one; its transposed one's memory."""


def other_rows(view: View) -> Iterator[Found]:
    """Outputs that belong to other rows, of the own matrix or of another of the file."""
    call = view.call
    if call.op is not linear or len(view.rows) < LEAST:
        return
    kept = spread(len(view.rows), TOKENS)
    x = np.asarray(call.argument("x"), np.float64)[view.rows[kept]]
    scale = view.scale[kept]
    bias = call.argument("bias")
    plus = 0.0 if bias is None else bias.values().astype(np.float64)
    given = (view.result + view.error)[kept] - plus
    wrong = np.flatnonzero(
        np.square(view.error[kept] * scale).sum(0) > np.square(view.case.floor) * len(kept) / given.shape[1]
    )
    energy = np.square(given[:, wrong] * scale).sum(0)
    if not len(wrong) or energy.min() <= np.square(view.result[kept] * scale).sum() / given.shape[1] * NOTHING:
        return  # an output that is next to 0 is as near to any row that is
    some = wrong[spread(len(wrong), SAMPLED)]
    for name, how, weight in _matrices(call, view.scene):
        rows = _rows_of(weight, given[:, some] * scale, x * scale)
        if (rows >= 0).mean() < FOUND or ((rows == some).all() and weight is call.argument("weight")):
            continue
        order = np.arange(given.shape[1])
        order[wrong] = _rows_of(weight, given[:, wrong] * scale, x * scale)
        other = name != call.argument("weight").name or how
        if (order[wrong] < 0).any() or (not other and (order == np.arange(len(order))).all()):
            continue
        right = np.setdiff1d(np.arange(len(order)), wrong)
        values: dict[str, Any] = {"matrix": name, "how": how, "moves": _moves(order, wrong)}
        if other and len(right):
            values["feature"] = str(Pattern.of(wrong))
        yield Found("measured-rows", values, 0.0)
        return


def _moves(order: Indices, wrong: Indices) -> list[list[Any]]:
    """The outputs and by how many rows further on each takes its own: runs that are moved alike."""
    by = order[wrong] - wrong
    shifts = (shift for shift in dict.fromkeys(by.tolist()) if shift)
    return [[str(Pattern.of(wrong[by == shift])), int(shift)] for shift in shifts]


def _rows_of(weight: Weight, given: Floats, x: Floats) -> Indices:
    """The row of a matrix that gives each output, -1 for none: [token, output], [token, in] -> [output]."""
    best, nearest = np.full(given.shape[1], np.inf), np.full(given.shape[1], -1, np.intp)
    size = np.square(given).sum(0)
    buffer = weight.buffer()
    for start, stop in weight.chunks():
        made = x @ np.asarray(weight.rows(start, stop, buffer), np.float64).T
        distance = np.square(made).sum(0)[None] - 2 * given.T @ made + size[:, None]
        at = distance.argmin(1)
        least = distance[np.arange(len(at)), at]
        better = least < best
        best[better], nearest[better] = least[better], start + at[better]
    return np.where(best <= CLOSE * size, nearest, -1)


def _matrices(call: Call, scene: Scene) -> Iterator[tuple[str, str, Weight]]:
    """The own matrix, those of the layer, those of the same name in other layers, and those outside the layers."""
    own = call.argument("weight")
    n = own.shape[-1]
    yield own.name, AS_IT_IS, own
    layer, name = named(own)
    tensors = scene.model.gguf.tensors
    fits = [
        of
        for of, info in tensors.items()
        if len(info.shape) == 2 and info.shape[-1] == n and info.shape[0] <= ROWS  # noqa: PLR2004 - a matrix
    ]

    def nearness(of: str) -> tuple[int, int]:
        where = of.split(".", 2)
        there = int(where[1]) if where[0] == "blk" else None
        same = of.endswith(f".{name}")
        if layer is None or there is None:
            return (1 if there is None else 4), 0
        return (0 if there == layer else 2 if same else 3), abs(there - layer)

    for of in sorted(fits, key=nearness):
        if of != own.name and nearness(of)[0] < 3:  # noqa: PLR2004 - any other matrix of another layer is far-fetched
            found = scene.model.weights[of]
            yield of, AS_IT_IS, found.held_in(own.held) if own.held else found
    for how in (TURNED, READ):
        turned = read_as(own, how)
        if turned is not None:
            yield own.name, how, turned


def read_as(weight: Weight, how: str) -> Weight | None:
    """A matrix as it is read; None where its shape does not allow it."""
    if how == AS_IT_IS:
        return weight
    out, n = weight.shape
    if out * n > LARGEST:
        return None
    values = weight.values()
    if how == TURNED:
        return replace(weight, dense=np.ascontiguousarray(values.reshape(n, out).T))
    return replace(weight, dense=np.ascontiguousarray(values.T).reshape(out, n))


def of_rows(call: Call, scene: Scene, values: Values) -> Call | None:
    """The product with other rows, of its own matrix or another one's."""
    own, name = call.argument("weight"), values["matrix"]
    if own is None:
        return None
    other = own if name == own.name else scene.model.weights.get(name)
    weight = None if other is None or other.shape[-1] != own.shape[-1] else read_as(other, values["how"])
    order = _order(values["moves"], own.shape[0])
    if weight is None or order is None:
        return None
    chosen = np.arange(own.shape[0])
    if "feature" in values:
        chosen = Pattern.read(values["feature"]).among(own.shape[0])
    if order[chosen].max() >= weight.shape[0]:
        return None
    if len(chosen) == own.shape[0]:
        return call.with_arguments(weight=weight.pick(order))
    dense = np.array(own.values())
    dense[chosen] = weight.gather(order[chosen])
    return call.with_arguments(weight=replace(own, dense=dense))


def _order(moves: Sequence[Sequence[Any]], n: int) -> Indices | None:
    """The row of each output; None where there are fewer outputs than are moved, or a row before the first."""
    order = np.arange(n)
    for written, by in moves:
        pattern = Pattern.read(written)
        if not pattern.fits(n):
            return None
        at = pattern.among(n)
        order[at] = at + by
    return order if order.min() >= 0 else None


def _rows(values: Values) -> str:
    moves = values["moves"]
    which = f"outputs {values['feature']}" if "feature" in values else "all outputs"
    if not moves:
        return f"{which} are made with '{values['matrix']}'{values['how']}"
    told = ", ".join(f"{these('output', places)} with the row {by:+d} from its own" for places, by in moves[:3])
    more = f", and {len(moves) - 3} more such moves" if len(moves) > 3 else ""  # noqa: PLR2004 - as many are told
    return f"of '{values['matrix']}'{values['how']}, {told}{more}"


STATEMENTS = (
    statement(
        "measured-rows",
        "outputs are made with other rows",
        of_rows,
        _rows,
        "compare the name, the offset and the order of the weight's rows with the file",
        ops=(linear,),
    ),
)
