"""Which experts count, and how often: in their own results, and in the sum of what they give."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import Kind, kind_of
from firstdiff.explaining.measured.numbers import stated, times
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.places import LITTLE, TAKES
from firstdiff.explaining.measured.regions import Changes, regions
from firstdiff.explaining.measured.statement import Found, statement, these
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values, with_op
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]

CHOSEN, SHARES = "ffn_moe_topk", "ffn_moe_weighted"
"""The points that hold the experts that each token chose, and what each of these gives, times its weight."""


def expert_shares(view: View) -> Iterator[Found]:
    """Experts that count otherwise than once."""
    ids = _chosen(view.call, view.scene)
    whole = None if ids is None else _shares(view.call, view.scene, np.asarray(view.case.computed), ids)
    if ids is None or whole is None or not np.isfinite(whole).all():
        return
    shares, chosen = whole[view.rows], ids[view.rows]
    count = int(ids.max()) + 1
    error = view.error * view.scale
    of = np.stack([_added(_of_expert(shares, chosen, e), error.shape) * view.scale for e in range(count)])
    flat = of.reshape(count, -1)
    changes = Changes(flat @ error.ravel(), flat @ flat.T, float(np.square(error).sum()), error.size)
    for region in regions(changes):
        if region.left <= changes.error / TAKES and abs(region.factor) >= LITTLE:
            places = region.places or Pattern.span(0, count)
            size = float(changes.between[np.ix_(places.among(count), places.among(count))].sum())
            off = float(np.sqrt(max(region.left, 0.0) / error.size / max(size, 1e-300)))
            yield Found("measured-experts", {"expert": str(places), "by": stated(1 + region.factor, off)}, region.left)


def _chosen(call: Call, scene: Scene) -> Ids | None:
    """The experts that each token chose [token, chosen]."""
    found = scene.beside(call, CHOSEN)
    if found is None or found.ndim != 2 or not np.isfinite(found).all():  # noqa: PLR2004 - [token, chosen]
        return None
    return np.asarray(found, np.intp)


def _shares(call: Call, scene: Scene, result: Array, ids: Ids) -> Floats | None:
    """What each chosen expert adds to a result [token, chosen, number]; None where experts have no part in it."""
    if result.shape[:2] == ids.shape and result.ndim in (2, 3):
        return np.asarray(result, np.float64).reshape(*ids.shape, -1)
    if kind_of(call.point) is not Kind.EXPERTS:
        return None
    found = scene.beside(call, SHARES)
    return None if found is None or found.shape[:2] != ids.shape else np.asarray(found, np.float64)


def _of_expert(shares: Floats, ids: Ids, expert: int) -> Floats:
    """What one expert adds to a result: in its own places, or to the sum."""
    return np.where((ids == expert)[..., None], shares, 0.0)


def _added(shares: Floats, shape: tuple[int, ...]) -> Floats:
    """What experts add [token, chosen, number] in the shape of a result: of a sum, added up over those chosen."""
    return shares.reshape(shape) if shares.size == np.prod(shape) else shares.sum(1).reshape(shape)


def experts_counted(call: Call, scene: Scene, values: Values) -> Call | None:
    """A result in which some experts count otherwise than once."""
    ids = _chosen(call, scene)
    if ids is None:
        return None
    meant = np.isin(ids, Pattern.read(values["expert"]).among(int(ids.max()) + 1))
    op, more = call.op, values["by"] - 1

    def counted(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
        y = np.asarray(op(*inputs, arithmetic=arithmetic, **attributes))
        shares = _shares(call, scene, y, ids)
        if shares is None:
            return y
        added = _added(np.where(meant[..., None], shares, 0.0), y.shape)
        return np.asarray(y + (more * added).astype(y.dtype))

    return with_op(call, Derived(op, counted, sizes=lambda size: size))


def _told(values: Values) -> str:
    meant = these("expert", values["expert"])
    if values["by"] == 0:
        return f"the output of {meant} is missing"
    return f"the output of {meant} counts {times(values['by'])} instead of once"


STATEMENTS = (
    statement(
        "measured-experts",
        "some experts count otherwise than once",
        experts_counted,
        _told,
        "look at what is added up for these experts: their tokens, their weights, the end of the loop over them",
    ),
)
