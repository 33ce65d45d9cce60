"""Results whose features stand in another order that follows a rule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.describing.regularity import orders
from firstdiff.explaining.measured.alteration import laid_out
from firstdiff.explaining.measured.places import TAKES
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values, with_op
from firstdiff.hypotheses.products import spread
from firstdiff.model.arithmetic import Array
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call

PROBES = 24
"""Features that a rule is sought by."""


def other_orders(view: View) -> Iterator[Found]:
    """Features in another order."""
    if "query" in view.axes or len(view.rows) < 2:  # noqa: PLR2004 - one token's numbers may be alike by chance
        return
    given, right = ((x * view.scale) for x in (view.result + view.error, view.result))
    n = right.shape[1]
    wrong = np.flatnonzero(np.square(view.error * view.scale).sum(0) > 0)
    some = wrong[spread(len(wrong), PROBES)]
    squares = np.square(right).sum(0)
    distance = squares[None] - 2 * given[:, some].T @ right + np.square(given[:, some]).sum(0)[:, None]
    near = distance <= np.maximum(1e-3 * np.square(given[:, some]).sum(0), 1e-12 * squares.max())[:, None]
    if not near.any(1).all():
        return
    known = {int(p): np.flatnonzero(near[i]) for i, p in enumerate(some)}
    total = float(np.square(view.error * view.scale).sum())
    for says, order in orders(n, known):
        left = float(np.square(given - right[:, order]).sum())
        if left <= total / TAKES:
            yield Found("measured-order", {"order": says, "features": [int(i) for i in order]}, left)
            return


def reordered(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The result with its features in another order."""
    op, point = call.op, call.point
    order: npt.NDArray[np.intp] = np.asarray(values["features"], np.intp)

    def changed(*inputs: object, arithmetic: object, **attributes: object) -> Array:
        y = np.asarray(op(*inputs, arithmetic=arithmetic, **attributes))
        flat, _ = laid_out(y, point)
        return y if flat.shape[-1] != len(order) else np.ascontiguousarray(flat[..., order].reshape(y.shape))

    return with_op(call, Derived(op, changed, sizes=lambda size: size))


STATEMENTS = (
    statement(
        "measured-order",
        "features stand in another order",
        reordered,
        "the features of the result are {order}",
        "compare the order of the axes where the tensor is written or read",
    ),
)
