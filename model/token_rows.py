"""Calls cut down to some tokens: operations that compute each token's row by itself can be run for these alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from firstdiff.model.attention import append, attend, scores, soft_max
from firstdiff.model.graph.elementwise import geglu, gelu
from firstdiff.model.operations import Operation, add, embed, layer_norm, linear, rms_norm, rope, swiglu
from firstdiff.model.probe import Call

ROWS: Mapping[Operation, tuple[str, ...]] = {
    embed: ("tokens",), linear: ("x",), rms_norm: ("x",), rope: ("x", "positions"), swiglu: ("gate", "up"),
    layer_norm: ("x",), geglu: ("gate", "up"), gelu: ("x",),
    add: ("a", "b"), scores: ("q",), soft_max: ("kq",), attend: ("p",), append: ("new",),
}  # fmt: skip
"""Operands whose rows are the tokens', of operations that work row by row."""

LAST = (scores, soft_max, attend)
"""Operations that take their rows for the last ones that are cached."""


def rows_of(call: Call, rows: npt.NDArray[np.int64]) -> Call | None:
    """A call cut down to some rows, in ascending order.

    Returns
    -------
    None where the operation does not work row by row, where no row is left, and where it takes its rows for the last
    tokens' and these are others.
    """
    if call.op not in ROWS or not len(rows):
        return None
    axis = 1 if call.op in (soft_max, attend) else 0
    first = call.argument(ROWS[call.op][0])
    tokens = first.shape[axis] if isinstance(first, np.ndarray) else len(first)
    if call.op in LAST and rows[0] != tokens - len(rows):
        return None
    return call.with_arguments(
        **{
            name: x.take(rows, axis) if isinstance(x := call.argument(name), np.ndarray) else tuple(x[i] for i in rows)
            for name in ROWS[call.op]
        }
    )
