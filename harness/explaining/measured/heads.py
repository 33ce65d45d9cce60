"""Which head of keys or values each query head read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstdiff.explaining.measured.places import TAKES
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values
from firstdiff.model.arithmetic import F64
from firstdiff.model.attention import attend, scores
from firstdiff.model.probe import Call

HELD = {scores: "keys", attend: "values"}


def other_heads(view: View) -> Iterator[Found]:
    """Query heads that read other heads of keys or values than their own."""
    call = view.call
    if call.op not in HELD:
        return
    held, group = call.argument(HELD[call.op]), call.argument("group")
    count, heads = held.shape[1], held.shape[1] * group
    given = view.result + view.error
    left = np.empty((count, heads))
    for number in range(count):
        same = np.repeat(held[:, number : number + 1], count, axis=1)
        made = np.asarray(call.with_arguments(**{HELD[call.op]: same}).op(
            *call.with_arguments(**{HELD[call.op]: same}).inputs, arithmetic=F64, **call.attributes
        ), np.float64)  # fmt: skip
        if call.op is scores:
            off = np.where(view.result != 0, given - made[:, view.rows], 0.0) * view.scale
            left[number] = np.square(off).sum((1, 2))
        else:
            off = (given - made[view.rows].reshape(given.shape)) * view.scale
            left[number] = np.square(off).reshape(len(off), heads, -1).sum((0, 2))
    reads = left.argmin(0)
    total = float(np.square(view.error * view.scale).sum())
    if (reads != np.arange(heads) // group).any() and left.min(0).sum() <= total / TAKES:
        yield Found("measured-heads", {"of": HELD[call.op], "reads": [int(n) for n in reads]}, float(left.min(0).sum()))


def heads_read(call: Call, _scene: Scene, values: Values) -> Call | None:
    """Attention whose query heads read given heads."""
    if values["of"] != HELD[call.op]:
        return None
    held, reads = call.argument(values["of"]), np.asarray(values["reads"])
    if len(reads) != held.shape[1] * call.argument("group") or reads.max() >= held.shape[1]:
        return None
    return call.with_arguments(**{values["of"]: np.ascontiguousarray(held[:, reads]), "group": 1})


def _heads(values: Values) -> str:
    reads = ", ".join(map(str, values["reads"][:16])) + (", …" if len(values["reads"]) > 16 else "")  # noqa: PLR2004
    return f"the query heads read the heads {reads} of the {values['of']}, in this order"


STATEMENTS = (
    statement(
        "measured-heads",
        "query heads read other heads",
        heads_read,
        _heads,
        "query head h reads the head h // group of keys and values",
        ops=(scores, attend),
    ),
)
