"""What a statement was measured by, place by place: the quantity that it speaks of, beside the right one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.alteration import RESULT
from firstdiff.explaining.measured.frequencies import own_frequencies
from firstdiff.explaining.measured.heads import HELD
from firstdiff.explaining.measured.masks import masked
from firstdiff.explaining.measured.operands import views
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.places import Part
from firstdiff.explaining.measured.sums import Sum, sums_of
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.products import spread
from firstdiff.verdict import Measured, Series

Numbers = npt.NDArray[np.floating] | npt.NDArray[np.integer]
Values = dict[str, Any]

MOST = 48
"""Places that are told apart."""

SAMPLES = 16
"""Numbers of a curve or a vector that are told."""

DIGITS, SMALL = 4, 1e-6
"""Digits that are told, and below what a number is none."""


def evidence(view: View, id_: str, values: Values) -> Measured:
    """By how many numbers a statement was measured, with how many unknowns, and the quantity place by place."""
    make = _SERIES.get(id_)
    counts = int(np.count_nonzero((view.result != 0) | (view.error != 0)))
    series = None if make is None else next(iter(make(view, values)), None)
    return Measured(numbers=counts, unknowns=_unknowns(values), series=series)


NOT_FITTED = ("among", "all", "times")
"""Values that say something of a statement, and were not fitted."""


def _unknowns(values: Values) -> int:
    """How many numbers a statement has that were fitted: factors, and both ends of each range."""
    count = 0
    for name, value in values.items():
        if isinstance(value, float | int) and name not in NOT_FITTED:
            count += 1
        elif name in ("moves", "slopes", "knots", "turns", "reads"):
            count += len(value) * (3 if name == "moves" else 1)
        elif name in ("token", "query", "head", "key", "feature", "input", "dimension"):
            count += 2 * len(Pattern.read(value).runs)
    return count


def _told(x: float) -> float:
    """A number in few digits; what is next to 0 is 0."""
    return float(f"{x:.{DIGITS}g}") if abs(x) >= SMALL else 0.0


def _series(quantity: str, axis: str, places: list[str], measured: Numbers, right: Numbers) -> Series:
    return Series(
        quantity, axis, tuple(places), tuple(_told(float(x)) for x in measured), tuple(_told(float(x)) for x in right)
    )


def _groups(n: int, places: Pattern | None) -> list[npt.NDArray[np.intp]]:
    """Runs of neighbours that are all meant or all not, each divided so that there are not more than are told."""
    meant = np.zeros(n, np.bool_)
    if places is not None:
        meant[places.among(n)] = True
    ends = [0, *(np.flatnonzero(np.diff(meant.astype(np.int8))) + 1).tolist(), n]
    size = -(-n // (MOST // 2))
    groups: list[npt.NDArray[np.intp]] = []
    for start, stop in pairwise(ends):
        cuts = range(start, stop, max(size, -(-(stop - start) // max(1, MOST // len(ends)))))
        groups += [np.arange(cut, min(stop, cut + cuts.step)) for cut in cuts]
    return groups[: 2 * MOST]


def _places(n: int, pattern: Pattern | None) -> tuple[list[npt.NDArray[np.intp]], list[str]]:
    """Groups of places, and their names."""
    if pattern is not None and pattern.period is not None:
        return _by_rest(n, pattern), [f"i % {pattern.period} in {str(pattern).partition(' of')[0]}", "the others"]
    groups = _groups(n, pattern)
    return groups, _named(groups)


def _by_rest(n: int, pattern: Pattern) -> list[npt.NDArray[np.intp]]:
    """The places of each so many that are meant, and those that are not."""
    meant = pattern.among(n)
    return [meant, np.setdiff1d(np.arange(n), meant)]


def _named(groups: list[npt.NDArray[np.intp]]) -> list[str]:
    return [str(Pattern.span(int(of[0]), int(of[-1]) + 1)) for of in groups]


def _terms(view: View, values: Values) -> Iterator[Series]:
    axis = next((name for name in ("input", "key", "dimension") if name in values), None)
    of: Sum | None = next(iter(sums_of(view)), None)
    if of is None or axis is None:
        return
    changes = of.changes(of.left)
    groups, names = _places(of.terms, Pattern.read(values[axis]))
    pick = np.zeros((of.terms, len(groups)))
    for number, group in enumerate(groups):
        pick[group, number] = 1
    between, along = pick.T @ changes.between @ pick, pick.T @ changes.along
    found = 1 + np.linalg.lstsq(between, along, rcond=1e-10)[0]
    yield _series(f"the weight of each {axis} in the sum", axis, names, found, np.ones(len(groups)))


def _by_place(view: View, values: Values) -> Iterator[Series]:
    """Factors, or what is added, along the axis of the places."""
    of = next((v for v in views(view) if v.of == values["of"]), None)
    if of is None:
        return
    axis = next((name for name in ("feature", "key", "head", "query", "token") if name in values), of.axes[-1])
    if axis not in of.axes:
        return
    whole = tuple(np.arange(n) for n in of.result.shape)
    part = Part(of, {}, whole, of.axes.index(axis))
    added = "by" in values and values.get("raised", False)
    change = of.effect(of.own) - of.effect(np.zeros_like(of.own)) if not added else of.effect(of.own + 1) - of.result
    change, error = part.columns(change), part.columns(of.error)
    pattern = Pattern.read(values[axis]) if axis in values else None
    groups, names = _places(change.shape[1], pattern)
    size = np.array([np.square(change[:, group]).sum() for group in groups])
    along = np.array([(change[:, group] * error[:, group]).sum() for group in groups])
    found = along / np.where(size > 0, size, 1)
    kept = [i for i, s in enumerate(size) if s > 0]
    what = "the result" if values["of"] == RESULT else f"the operand {values['of']}"
    quantity = f"what is added to {what}" if added else f"the factor on {what}"
    right = np.zeros(len(kept)) if added else np.ones(len(kept))
    yield _series(quantity, axis, [names[i] for i in kept], found[kept] + right, right)


def _added(view: View, values: Values) -> Iterator[Series]:
    yield from _by_place(view, values | {"raised": True})


def _mask(view: View, values: Values) -> Iterator[Series]:
    changed = masked(view.call, view.scene, values)
    assert changed is not None, "it was measured"
    seen = np.isfinite(changed.argument("mask"))[view.rows]
    some = spread(len(seen), MOST)
    right = np.minimum(np.arange(seen.shape[1]) + 1, seen.shape[1])[-view.case.computed.shape[-2] :][view.rows]
    places = [str(int(view.rows[i])) for i in some]
    yield _series("how many keys each query sees", "query", places, seen.sum(1)[some], right[some])


def _positions(view: View, values: Values) -> Iterator[Series]:
    own = np.asarray(view.call.argument("positions"))[view.rows]
    moved = own.copy()
    at = (
        np.isin(view.rows, Pattern.read(values["token"]).among(int(view.rows[-1]) + 1))
        if "token" in values
        else own >= 0
    )
    moved[at] += values["by"]
    some = spread(len(own), MOST)
    yield _series("the position of each token", "token", [str(int(view.rows[i])) for i in some], moved[some], own[some])


def _turns(view: View, values: Values) -> Iterator[Series]:
    speeds = np.asarray(values["turns"])
    own = own_frequencies(view.call, view.call.argument("dim") or 2 * len(speeds))
    own = np.concatenate([own, np.zeros(len(speeds) - len(own))])
    some = spread(len(speeds), MOST)
    places = [str(int(i)) for i in some]
    yield _series("radians for each position that a pair turns by", "pair", places, speeds[some], own[some])


def _heads(view: View, values: Values) -> Iterator[Series]:
    reads = np.asarray(values["reads"], np.float64)
    own = np.arange(len(reads)) // view.call.argument("group")
    of = HELD[view.call.op]
    yield _series(f"the head of the {of} that is read", "head", [str(i) for i in range(len(reads))], reads, own)


def _curve(view: View, _values: Values) -> Iterator[Series]:
    counts = (view.result != 0) | (view.error != 0)
    right, given = view.result[counts], (view.result + view.error)[counts]
    order = np.argsort(right, kind="stable")[spread(len(right), SAMPLES)]
    places = [f"{_told(float(x)):g}" for x in right[order]]
    yield _series("the candidate's number for each right one", "right number", places, given[order], right[order])


def _vector(view: View, _values: Values) -> Iterator[Series]:
    of = next((v for v in views(view) if v.of == "weight"), None)
    if of is None:
        return
    gain = of.effect(np.ones_like(of.own)) - of.effect(np.zeros_like(of.own))
    given = of.result + of.error - of.effect(np.zeros_like(of.own))
    size = np.square(gain * of.scale).sum(0)
    seen = (gain * given * of.scale**2).sum(0) / np.where(size > 0, size, 1)
    some = spread(len(seen), SAMPLES)
    yield _series("the norm's weight", "feature", [str(int(i)) for i in some], seen[some], of.own[0][some])


def _moves(view: View, values: Values) -> Iterator[Series]:
    of = next((v for v in views(view) if v.of == values["of"]), None)
    if of is None or values["axis"] not in of.axes:
        return
    n = of.own.shape[of.axes.index(values["axis"])]
    order = np.arange(n)
    for written, by in values["moves"]:
        at = Pattern.read(written).among(n)
        order[at] = at + by
    groups = _groups(n, Pattern.of(np.flatnonzero(order != np.arange(n))))
    first = np.array([order[group[0]] for group in groups], np.float64)
    yield _series(
        "the place that the first number of each range comes from", values["axis"], _named(groups), first,
        np.array([group[0] for group in groups], np.float64),
    )  # fmt: skip


_SERIES: dict[str, Callable[[View, Values], Iterator[Series]]] = {
    "measured-terms": _terms,
    "measured-scaled": _by_place,
    "measured-raised": _added,
    "measured-taken": _moves,
    "measured-mask": _mask,
    "measured-positions": _positions,
    "measured-turns": _turns,
    "measured-heads": _heads,
    "measured-curve": _curve,
    "measured-vector": _vector,
}
