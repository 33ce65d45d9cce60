"""A result that is a function of the right one, number by number: which function, by the two side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.numbers import stated
from firstdiff.explaining.measured.places import TAKES
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values, with_op
from firstdiff.hypotheses.products import spread
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import soft_max
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call

Floats = npt.NDArray[np.float64]

LEAST, MOST = 64, 8192
"""Numbers by which a curve is measured."""

PILED = 4
"""Numbers at one bound from which it is a clip."""

PIECES = 6
"""Straight pieces of a curve that are told."""

ROUNDS = 40
"""Halvings of the interval in which a parameter is sought."""


def curves(view: View) -> Iterator[Found]:
    """Functions of the right result that give the candidate's."""
    if view.call.op is soft_max:
        return
    counts = (view.result != 0) | (view.error != 0)
    scale = np.broadcast_to(view.scale, view.result.shape)[counts]
    right, given = view.result[counts], (view.result + view.error)[counts]
    if len(right) < LEAST:
        return
    total = float(np.square((given - right) * scale).sum())
    for values in _candidates(right, given, view):
        left = float(np.square((given - curve(right, values)) * scale).sum())
        if left <= total / TAKES:
            yield Found("measured-curve", values, left)


def curve(x: Floats, values: Values) -> Floats:
    """The function that `values` describe."""
    return _CURVES[values["curve"]](x, values)


def curved(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The call whose result goes through a function."""
    op = call.op

    def changed(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
        y = np.asarray(op(*inputs, arithmetic=arithmetic, **attributes))
        return curve(np.asarray(y, np.float64), values).astype(y.dtype)

    return with_op(call, Derived(op, changed, sizes=lambda size: size))


def _clip(x: Floats, values: Values) -> Floats:
    return np.clip(x, values.get("low", -np.inf), values.get("high", np.inf))


def _cap(x: Floats, values: Values) -> Floats:
    return np.asarray(values["at"] * np.tanh(x / values["at"]))


def _power(x: Floats, values: Values) -> Floats:
    with np.errstate(all="ignore"):
        return np.asarray(values["times"] * np.sign(x) * np.abs(x) ** values["exponent"])


def _steps(x: Floats, values: Values) -> Floats:
    return np.asarray(np.rint(x / values["step"]) * values["step"])


def _pieces(x: Floats, values: Values) -> Floats:
    knots, slopes = values["knots"], values["slopes"]
    y = values["at"] + slopes[0] * (x - knots[0])
    for knot, before, after in zip(knots, slopes, slopes[1:], strict=False):
        y = y + (after - before) * np.maximum(x - knot, 0)
    return np.asarray(y)


_CURVES: dict[str, Callable[[Floats, Values], Floats]] = {
    "clip": _clip,
    "cap": _cap,
    "power": _power,
    "steps": _steps,
    "pieces": _pieces,
}


def _candidates(right: Floats, given: Floats, view: View) -> Iterator[dict[str, Any]]:
    stored = view.case.stored or 1e-6
    yield from _clips(right, given, stored)
    kept = spread(len(right), MOST)
    right, given = right[kept], given[kept]
    order = np.argsort(right, kind="stable")
    right, given = right[order], given[order]
    yield from _powers(right, given)
    yield from _caps(right, given)
    yield from _stepped(given)
    yield from _straight(right, given, stored)


def _clips(right: Floats, given: Floats, stored: float) -> Iterator[dict[str, Any]]:
    low, high = float(given.min()), float(given.max())
    near = max(stored, 1e-6) / 2
    values: dict[str, Any] = {}
    if ((given >= high - near * abs(high)) & (right > high)).sum() >= PILED:
        values["high"] = stated(high, near * abs(high) / 4)
    if ((given <= low + near * abs(low)) & (right < low)).sum() >= PILED:
        values["low"] = stated(low, near * abs(low) / 4)
    if values:
        yield {"curve": "clip", **values}


def _powers(right: Floats, given: Floats) -> Iterator[dict[str, Any]]:
    same = (np.sign(right) == np.sign(given)) & (right != 0)
    if same.mean() < 0.9:  # noqa: PLR2004 - nearly all
        return
    x, y = np.log(np.abs(right[same])), np.log(np.abs(given[same]))
    weights = np.abs(right[same])  # small numbers are known with few digits
    mx, my = np.average(x, weights=weights), np.average(y, weights=weights)
    size = float((weights * (x - mx) ** 2).sum())
    if size == 0:
        return
    exponent = float((weights * (x - mx) * (y - my)).sum()) / size
    rest = y - my - exponent * (x - mx)
    error = float(np.sqrt((weights * rest**2).sum() / weights.sum() / len(x)))
    spread_ = float(np.sqrt(size / weights.sum()))
    exponent = stated(exponent, error / spread_)
    times = float(np.exp(my - exponent * mx))
    if exponent not in (0.0, 1.0):
        yield {"curve": "power", "exponent": exponent, "times": stated(times, times * error * (1 + abs(mx) / spread_))}


def _caps(right: Floats, given: Floats) -> Iterator[dict[str, Any]]:
    most = float(np.abs(given).max())
    if not most > 0 or (np.abs(given) > np.abs(right) * 1.05 + 1e-9 * most).mean() > 0.05:  # noqa: PLR2004
        return

    def left(log: float) -> float:
        at = np.exp(log)
        return float(np.square(given - at * np.tanh(right / at)).sum())

    best = _least(left, np.log(most) - 0.5, np.log(np.abs(right).max()) + 3)
    at = float(np.exp(best))
    error = float(np.sqrt(left(best) / len(right)))
    slope = np.tanh(right / at) - right / at / np.cosh(right / at) ** 2
    size = float(np.square(slope).sum())
    if size > 0:
        yield {"curve": "cap", "at": stated(at, error / np.sqrt(size))}


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one number is least: a grid, then thirds of an interval."""
    grid = np.linspace(low, high, 24)
    at = int(np.argmin([function(float(x)) for x in grid]))
    a, b = float(grid[max(0, at - 1)]), float(grid[min(len(grid) - 1, at + 1)])
    for _ in range(ROUNDS):
        one, two = a + (b - a) / 3, b - (b - a) / 3
        if function(one) <= function(two):
            b = two
        else:
            a = one
    return (a + b) / 2


def _stepped(given: Floats) -> Iterator[dict[str, Any]]:
    levels = np.unique(np.abs(given))
    levels = levels[levels > 0]
    if not 2 <= len(levels) < len(given) / 2:  # noqa: PLR2004 - a step needs two
        return
    step = float(levels[0])
    for _ in range(4):
        count = np.rint(given / step)
        size = float((count * count).sum())
        if size == 0:
            return
        step = float((count * given).sum()) / size
    error = float(np.sqrt(np.square(given - np.rint(given / step) * step).sum() / size / len(given)))
    yield {"curve": "steps", "step": stated(step, error)}


def _straight(right: Floats, given: Floats, stored: float) -> Iterator[dict[str, Any]]:
    """Straight pieces: lines through neighbours, as long as these lie on them."""
    lines: list[tuple[float, float, int, int]] = []
    start, n = 0, len(right)
    least = max(8, n // 200)
    while start + least <= n and len(lines) < 4 * PIECES:
        stop = start + least
        line = _line(right[start:stop], given[start:stop])
        while stop < n:
            further = min(n, stop + max(least, (stop - start) // 2))
            off = np.abs(given[stop:further] - line[0] - line[1] * right[stop:further])
            allowed = 2 * stored * np.abs(given[stop:further]) + 2e-6 * np.abs(given).max()
            bad = np.flatnonzero(off > allowed)
            if len(bad) and bad[0] + 3 < len(off) and (off > allowed)[bad[0] :].mean() > 0.5:  # noqa: PLR2004
                stop += int(bad[0])
                break
            stop = further
            line = _line(right[start:stop], given[start:stop])
        lines.append((*line, start, stop))
        start = stop
    merged = _merged(lines, right, given, stored)
    if not 1 < len(merged) <= PIECES:
        return
    knots = []
    for (a, b, _, _), (c, d, _, _) in pairwise(merged):
        if b == d:
            return
        knots.append((a - c) / (d - b))
    unit = float(np.abs(right).max())
    error = max(stored, 1e-6) / 8
    slopes = [stated(b, error / np.sqrt(max(1, stop - start)) * 4) for _, b, start, stop in merged]
    knots = [stated(knot, error * unit / 16) for knot in knots]
    yield {"curve": "pieces", "knots": knots, "slopes": slopes, "at": merged[0][0] + merged[0][1] * knots[0]}


def _merged(
    lines: list[tuple[float, float, int, int]], right: Floats, given: Floats, stored: float
) -> list[tuple[float, float, int, int]]:
    """The longest lines, neighbours that are one taken together; short ones between are curved or cross a knot."""
    kept: list[tuple[float, float, int, int]] = []
    for a, b, start, stop in lines:
        if kept:
            c, d, first, last = kept[-1]
            off = np.abs(given[start:stop] - c - d * right[start:stop])
            allowed = 3 * stored * np.abs(given[start:stop]) + 1e-5 * np.abs(given).max()
            if (off <= allowed).mean() > 0.9:  # noqa: PLR2004
                kept[-1] = (*_line(right[first:stop], given[first:stop]), first, stop)
                continue
            del last
        kept.append((a, b, start, stop))
    return [line for line in kept if line[3] - line[2] >= max(8, len(right) // 100)]


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Intercept and slope."""
    mx, my = float(x.mean()), float(y.mean())
    size = float(np.square(x - mx).sum())
    slope = float(((x - mx) * (y - my)).sum()) / size if size > 0 else 0.0
    return my - slope * mx, slope


def _curve(values: Values) -> str:
    kind = values["curve"]
    if kind == "clip":
        words = {"low": "below", "high": "above"}
        bounds = [
            f"numbers {word} {values[name]:g} become {values[name]:g}" for name, word in words.items() if name in values
        ]
        return f"the result is clipped: {' and '.join(bounds)}"
    if kind == "cap":
        return f"the result y goes through {values['at']:g} tanh(y / {values['at']:g})"
    if kind == "power":
        times_ = "" if values["times"] == 1 else f"{values['times']:g} times "
        return f"the result is {times_}the right one's magnitude to the power of {values['exponent']:g}, with its sign"
    if kind == "steps":
        return f"the result is rounded to multiples of {values['step']:g}"
    knots, slopes = values["knots"], values["slopes"]
    if knots == [0.0] and 1.0 in slopes:
        other = slopes[0] if slopes[1] == 1 else slopes[1]
        who, rest = ("negative", "positive") if slopes[1] == 1 else ("positive", "negative")
        return f"{who} numbers of the result are multiplied by {other:g}, and {rest} ones are right"
    parts = ", ".join(f"{slope:g} from {knot:g} on" for slope, knot in zip(slopes[1:], knots, strict=True))
    return f"the result is a line with bends of the right one: its slope is {slopes[0]:g}, then {parts}"


STATEMENTS = (
    statement(
        "measured-curve",
        "the result goes through a function",
        curved,
        _curve,
        "look for what is done to the result: a clip, a cap, another activation, a conversion",
    ),
)
