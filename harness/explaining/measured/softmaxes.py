"""What a softmax was fed: scores with something added or multiplied, by the logarithm of its result.

The logarithm of a probability is the score, but for one number for each query and head. What goes with the distance of
a key from the query is a position bias, what goes with the key alone concerns that key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.numbers import stated
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.places import LITTLE, TAKES
from firstdiff.explaining.measured.regions import MOST, Changes, regions
from firstdiff.explaining.measured.statement import Found, statement, where
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values, with_op
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import scores, soft_max
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

SMALL = 1e-4
"""Probabilities below which nothing is read off the logarithm: f16 keeps few digits of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Logarithms:
    """Scores as a softmax's result says them, beside the right ones.

    Parameters
    ----------
    error
        What the candidate's scaled scores have more [head, query, key], each row less its mean over `known`.
    right
        The scaled scores.
    known
        Which entries are known.
    total
        The squared error of the whole result.
    """

    view: View
    error: Floats
    right: Floats
    known: Mask
    total: float


def softmax_fed(view: View) -> Iterator[Found]:
    """What a softmax was fed otherwise."""
    if view.call.op is not soft_max:
        return
    logarithms = _logarithms(view)
    if logarithms is not None:
        yield from _scaled(logarithms)
        yield from _sloped(logarithms)
        yield from _keys(logarithms)


def scores_sloped(view: View) -> Iterator[Found]:
    """Scores with something added that goes with the distance."""
    if view.call.op is not scores:
        return
    t, s = view.case.computed.shape[-2:]
    distance = np.maximum(np.arange(s - t, s)[:, None] - np.arange(s)[None], 0)[view.rows].astype(np.float64)
    seen = (view.result != 0) | (view.error != 0)
    whole = float(np.square(view.error * view.scale).sum())
    slopes, left = _slopes(view.error * view.scale, np.where(seen, distance, 0) * view.scale)
    if whole > 0 and left.sum() <= whole / TAKES:
        yield Found("measured-sloped", {"slopes": _told(slopes), "unit": "scores"}, left.sum())


def _slopes(error: Floats, distance: Floats) -> tuple[list[tuple[float, float]], Floats]:
    """The slope of each head with its standard error, and what is left of each head's squared error."""
    slopes, left = [], []
    for one, by in zip(error, np.broadcast_to(distance, error.shape), strict=True):
        size = float((by * by).sum())
        slope = float((one * by).sum()) / size if size > 0 else 0.0
        rest = float(np.square(one - slope * by).sum())
        slopes.append((slope, float(np.sqrt(rest / max(1, one.size) / size)) if size > 0 else 0.0))
        left.append(rest)
    return slopes, np.asarray(left)


def _told(slopes: list[tuple[float, float]]) -> list[float]:
    """The slopes in as few digits as they are known to; one where all heads have the same."""
    weights = [1 / max(error, 1e-12) ** 2 for _, error in slopes]
    mean = sum(w * slope for w, (slope, _) in zip(weights, slopes, strict=True)) / sum(weights)
    if all(abs(slope - mean) <= max(5 * error, 1e-5 * abs(mean)) for slope, error in slopes):
        return [stated(mean, sum(weights) ** -0.5)]
    return [stated(slope, error) for slope, error in slopes]


def _logarithms(view: View) -> Logarithms | None:
    given = view.result + view.error
    known = (given > SMALL) & (view.result > SMALL)
    if (known.sum(-1) < 2).all():  # noqa: PLR2004 - a difference
        return None
    kq = np.asarray(view.call.argument("kq"), np.float64)[:, view.rows]
    z = kq * view.call.argument("scale")
    log = np.log(np.where(known, given, 1.0)) - np.log(np.where(known, view.result, 1.0))
    return Logarithms(view, _centred(log, known), z, known, float(np.square(view.error * view.scale).sum()))


def _centred(x: Floats, known: Mask) -> Floats:
    """Rows less their mean over what is known, 0 elsewhere."""
    count = np.maximum(known.sum(-1, keepdims=True), 1)
    mean = np.where(known, x, 0).sum(-1, keepdims=True) / count
    return np.where(known, x - mean, 0.0)


def _share(of: Logarithms, left: float) -> float:
    error = float(np.square(of.error).sum())
    return left / error * of.total if error > 0 else of.total


def _scaled(of: Logarithms) -> Iterator[Found]:
    """Scores multiplied by a factor: in some heads, or for some queries."""
    z, error = _centred(of.right, of.known), of.error
    total = float(np.square(error).sum())
    for axis, name, rest in ((0, "head", (1, 2)), (1, "query", (0, 2))):
        n = z.shape[axis]
        along = np.zeros(int(of.view.rows[-1]) + 1 if axis else n)
        between = np.zeros(len(along))
        at = of.view.rows if axis else np.arange(n)
        along[at], between[at] = (error * z).sum(rest), np.square(z).sum(rest)
        for region in regions(Changes(along, between, total, int(of.known.sum())), (2, 4, 8)):
            if region.left <= total / TAKES and abs(region.factor) >= LITTLE:
                places = {} if region.places is None else {name: str(region.places)}
                size = float(between[(region.places or Pattern.span(0, len(between))).among(len(between))].sum())
                by = stated(1 + region.factor, float(np.sqrt(max(region.left, 0) / max(1, of.known.sum()) / size)))
                yield Found("measured-scaled", {"of": "kq", **places, "by": by}, _share(of, region.left))


def _sloped(of: Logarithms) -> Iterator[Found]:
    t, s = of.view.case.computed.shape[-2:]
    distance = (np.arange(s - t, s)[:, None] - np.arange(s)[None])[of.view.rows].astype(np.float64)
    by = _centred(np.broadcast_to(distance, of.error.shape), of.known)
    slopes, left = _slopes(of.error, by)
    if left.sum() <= np.square(of.error).sum() / TAKES:
        told = _told(slopes)
        yield Found("measured-sloped", {"slopes": told, "unit": "scaled scores"}, _share(of, float(left.sum())))


def _keys(of: Logarithms) -> Iterator[Found]:
    """A number added to the scores of some keys."""
    known = of.known.astype(np.float64)
    n = known.shape[-1]
    if n > MOST:
        return
    along = of.error.sum((0, 1))
    flat = known.reshape(-1, n)
    between = np.diag(flat.sum(0)) - (flat / np.maximum(flat.sum(-1, keepdims=True), 1)).T @ flat
    total = float(np.square(of.error).sum())
    changes = Changes(along, between, total, int(of.known.sum()))
    for region in regions(changes, (2, 4, 8, 16)):
        if region.places is None or region.left > total / TAKES:
            continue
        at = region.places.among(n)
        size = float(between[np.ix_(at, at)].sum())
        by = stated(region.factor, float(np.sqrt(max(region.left, 0) / max(1, of.known.sum()) / max(size, 1e-300))))
        yield Found("measured-keys", {"key": str(region.places), "by": by}, _share(of, region.left))


def keys_raised(call: Call, _scene: Scene, values: Values) -> Call | None:
    """A softmax with a number added to the scaled scores of some keys."""
    kq, pattern = np.asarray(call.argument("kq")), Pattern.read(values["key"])
    if not pattern.fits(kq.shape[-1]):
        return None
    added = np.zeros(kq.shape[-1], kq.dtype)
    added[pattern.among(kq.shape[-1])] = values["by"] / call.argument("scale")
    return call.with_arguments(kq=kq + added)


def sloped(call: Call, _scene: Scene, values: Values) -> Call | None:
    """Scores with a slope over the distance between query and key added: one for all heads, or one for each."""
    slopes = np.asarray(values["slopes"], np.float32).reshape(-1, 1, 1)
    if call.op is soft_max:
        kq = np.asarray(call.argument("kq"))
        if len(slopes) not in (1, len(kq)):
            return None
        return call.with_arguments(kq=kq + _distances(*kq.shape[-2:]) * (slopes / np.float32(call.argument("scale"))))
    return _scores_sloped(call, slopes)


def _scores_sloped(call: Call, slopes: npt.NDArray[np.float32]) -> Call | None:
    op = call.op
    if len(slopes) not in (1, call.argument("q").shape[1]):
        return None

    def changed(*inputs: object, arithmetic: object, **attributes: object) -> npt.NDArray[np.floating]:
        y = np.asarray(op(*inputs, arithmetic=arithmetic, **attributes))
        return np.asarray(y + (_distances(*y.shape[-2:]) * slopes).astype(y.dtype))

    return with_op(call, Derived(op, changed, sizes=lambda size: size))


def _distances(queries: int, keys: int) -> npt.NDArray[np.float32]:
    own = np.arange(keys - queries, keys)[:, None]
    return np.asarray(np.maximum(own - np.arange(keys)[None], 0), np.float32)


def without_sum(view: View) -> Iterator[Found]:
    """A softmax whose rows are not divided by their sums."""
    if view.call.op is soft_max:
        yield Found("measured-sums", {"rows": "not divided by their sums"}, 0.0)


def sums_left_out(call: Call, _scene: Scene, _values: Values) -> Call | None:
    """A softmax that only takes exponentials of what is below the largest."""
    op = call.op

    def exponentials(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
        p = np.asarray(op(*inputs, arithmetic=arithmetic, **attributes))
        top = p.max(-1, keepdims=True)
        return p / np.where(top > 0, top, 1)

    return with_op(call, Derived(op, exponentials))


def _told_sloped(values: Values) -> str:
    slopes = values["slopes"]
    told = (
        f"{slopes[0]:g}"
        if len(slopes) == 1
        else f"a slope for each head ({', '.join(f'{s:g}' for s in slopes[:4])}, …)"
    )
    return f"{told} times the distance between query and key is added to the {values['unit']}"


def _told_keys(values: Values) -> str:
    return f"{values['by']:g} is added to the scaled scores of {where(values)}"


SCORES = "look at what is added to the scores before the softmax"

STATEMENTS = (
    statement(
        "measured-sloped", "the distance is added to scores", sloped, _told_sloped, SCORES, ops=(soft_max, scores)
    ),
    statement(
        "measured-sums",
        "a softmax's rows are not divided by their sums",
        sums_left_out,
        "the softmax's rows are {rows}: the largest number of each is 1",
        "divide each row by its sum",
        ops=(soft_max,),
    ),
    statement(
        "measured-keys",
        "a number is added to the scores of some keys",
        keys_raised,
        _told_keys,
        SCORES,
        ops=(soft_max,),
    ),
)
