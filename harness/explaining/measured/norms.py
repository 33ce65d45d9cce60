"""What a norm took the mean of: which features, and how often, by the scale that each token was given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.numbers import stated, times
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.places import PERIODS, TAKES
from firstdiff.explaining.measured.regions import MOST, Changes, regions
from firstdiff.explaining.measured.statement import Found, statement, where
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values, with_op
from firstdiff.hypotheses.products import spread
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived, rms_norm
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

Floats = npt.NDArray[np.float64]

LEAST, MANY = 4, 64
"""Rows by which a mean is measured: with fewer some range fits any scale; more tell nothing new."""


LITTLE = 1e-3
"""By how much a feature must count otherwise than once for it to be told."""


def mean_of_some(view: View) -> Iterator[Found]:
    """Features that count otherwise than once in a norm's mean."""
    if view.call.op is not rms_norm or view.call.argument("weight") is None:
        return
    x, eps = np.asarray(view.call.argument("x"), np.float64), view.call.argument("eps")
    n = x.shape[-1]
    if n > MOST:
        return
    weight = view.call.argument("weight").values().astype(np.float64)
    given = (view.result + view.error).reshape(len(view.rows), -1, n).reshape(-1, n)
    rows = x[view.rows].reshape(-1, n)
    if len(rows) < LEAST:
        return
    some = spread(len(rows), MANY)
    given, rows = given[some], rows[some]
    weighted = rows * weight
    scale = (given * weighted).sum(-1) / np.maximum(np.square(weighted).sum(-1), 1e-300)
    off = given - scale[:, None] * weighted
    if (np.square(off).sum() > np.square(given).sum() * max(view.case.floor, 1e-6) ** 2) or (scale <= 0).any():
        return
    squares = np.square(rows)
    total = squares.sum(-1)
    seen = 1 / scale**2 - eps  # the mean that was taken
    relative = np.where(seen > 0, 1 / np.where(seen > 0, seen * n, 1), 0.0)
    error, parts = (n * seen - total) * relative, squares * relative[:, None]
    changes = Changes(parts.T @ error, parts.T @ parts, float(error @ error), len(error))
    whole = float(np.square(view.error * view.scale).sum())
    size = float(np.square(relative).sum())
    if size > 0:  # the same added to every mean
        more = float((error * relative).sum()) / size / n
        left = float(np.square(error - more * n * relative).sum())
        if left <= changes.error / TAKES:
            told = stated(eps + more, float(np.sqrt(left / len(error) / size)) / n)
            yield Found("measured-eps", {"eps": told}, left / max(changes.error, 1e-300) * whole)
    for region in regions(changes, PERIODS):
        if region.places is None or abs(region.factor) < LITTLE or region.left > changes.error / TAKES:
            continue
        at = region.places.among(n)
        size = float(np.square(parts[:, at].sum(-1)).sum())
        by = stated(1 + region.factor, float(np.sqrt(max(region.left, 0) / len(error) / max(size, 1e-300))))
        values = {"feature": str(region.places), "by": by}
        yield Found("measured-mean", values, region.left / max(changes.error, 1e-300) * whole)


def eps_changed(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The norm with another number added to its mean."""
    return call.with_arguments(eps=values["eps"])


def mean_changed(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The norm whose mean counts some features otherwise than once."""
    n, pattern, op = call.argument("x").shape[-1], Pattern.read(values["feature"]), call.op
    if not pattern.fits(n):
        return None
    count = np.ones(n)
    count[pattern.among(n)] = values["by"]

    def norm(x: Array, weight: Weight | None, *, eps: float, arithmetic: Arithmetic, **_: Any) -> Array:  # noqa: ANN401
        wide = np.asarray(x, np.float64)
        mean = (np.square(wide) * count).mean(-1, keepdims=True)
        y = arithmetic.widen(arithmetic.widen(x) * arithmetic.widen(1 / np.sqrt(mean + eps)))
        return y if weight is None else arithmetic.keep(y) * arithmetic.keep(arithmetic.widen(weight.values()))

    return with_op(call, Derived(op, norm))


def _mean(values: Values) -> str:
    if values["by"] == 0:
        return f"the norm's mean of squares leaves out {where(values)}, and counts all others once"
    return f"the norm's mean of squares counts {where(values)} {times(values['by'])}, and all others once"


STATEMENTS = (
    statement(
        "measured-mean", "a norm's mean counts some features otherwise than once", mean_changed, _mean, ops=(rms_norm,)
    ),
    statement(
        "measured-eps",
        "a norm has another epsilon",
        eps_changed,
        "the norm adds {eps:g} to the mean of squares",
        "take the epsilon of the file",
        ops=(rms_norm,),
    ),
)
