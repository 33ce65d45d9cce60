"""Changes at some places of an operand or of the result: scaled, raised, taken from elsewhere, another tensor's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.alteration import BEFORE, INPUT, RESULT
from firstdiff.explaining.measured.numbers import stated
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.regions import Changes, Region, regions
from firstdiff.explaining.measured.statement import Found
from firstdiff.explaining.measured.view import View, operands
from firstdiff.model.arithmetic import Array

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

PERIODS = (2, 4, 8, 16, 32, 64, 128, 256)
"""Of each so many places some are changed: pairs, lanes of a vector register, blocks."""

LITTLE = 1e-4
"""What a factor must differ from 1 by to be told: a smaller one stands for something else that is as small."""

TAKES = 16.0
"""A change is worth trying that takes all but this part of the squared error."""

NEGLIGIBLE = 100.0
"""How many times smaller, as squares, a tensor is that may stand for nothing."""

SAMPLED = 48
"""Wrong columns whose source is sought."""

MOVES = 3
"""Ranges that are taken from elsewhere, each from so many places on."""

MOVED_LEAST = 0.95
"""What a range that is taken from elsewhere may leave of the squared error."""

PEERS = 8192
"""Columns among which a source is sought."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some tokens, and of scores some heads, of a view, and the axis along which places are sought."""

    view: View
    places: dict[str, str]
    take: tuple[Indices, ...]
    axis: int

    @property
    def name(self) -> str:
        """The name of the axis."""
        return self.view.axes[self.axis]

    def cut(self, x: Floats) -> Floats:
        """The part of an array of the result's shape; along axes of length 1 all of it."""
        at = (np.zeros(1, np.intp) if n == 1 else t for n, t in zip(x.shape, self.take, strict=True))
        return np.asarray(x[np.ix_(*at)])

    def columns(self, x: Floats) -> Floats:
        """The part of an array with its places as columns, tokens scaled alike."""
        scaled = self.cut(x) * self.cut(self.view.scale)
        return np.moveaxis(scaled, self.axis, -1).reshape(-1, scaled.shape[self.axis])

    @property
    def periods(self) -> tuple[int, ...]:
        """Of how many places each some may be changed."""
        shape = self.view.case.computed.shape
        own = shape[-1:] if self.name == "feature" and len(shape) == 3 else ()  # noqa: PLR2004 - heads apart
        return tuple(sorted({*PERIODS, *own}))


def parts(view: View) -> Iterator[Part]:
    """The parts of a view in which places are sought, the whole first."""
    for places, tokens in view.selections:
        take = [np.arange(n) for n in view.result.shape]
        take[view.token_axis] = tokens
        if "head" not in view.axes:
            yield Part(view, places, tuple(take), 1)
            continue
        squares = np.square(view.of_tokens(view.error * view.scale, tokens)).sum((1, 2))
        yield Part(view, places, tuple(take), 0)
        yield Part(view, places, tuple(take), 2)
        wrong = np.flatnonzero(squares > max(view.case.floor**2 * len(tokens) / len(squares), squares.max() / 1e4))
        if 0 < len(wrong) < len(squares):
            take[0] = wrong
            yield Part(view, places | {"head": str(Pattern.of(wrong))}, tuple(take), 2)


def changed_places(views: Sequence[View]) -> Iterator[Found]:
    """Every kind of change at places of a result or an operand, as far as each takes most of the error.

    Of operands only what the result's own places do not say already.
    """
    for view in views:
        if view.of == RESULT or view.apart or not _goes_with(view):
            yield from _scaled_places(view)
    for view in views:
        for part in parts(view):
            yield from _raised(part)
            yield from _taken(part)
        whole = tuple(np.arange(n) for n in view.result.shape)
        if view.by_token:
            yield from _taken(Part(view, {}, whole, view.token_axis))
    for view in views:
        if view.by_token:
            yield from _replaced(view)


def _goes_with(view: View) -> bool:
    """Whether the result is multiplied by what the operand is multiplied by."""
    return not view.effect(np.zeros_like(view.own)).any()


def _scaled_places(view: View) -> Iterator[Found]:
    """Numbers multiplied by a factor at some places."""
    nothing = view.effect(np.zeros_like(view.own))
    for part in parts(view):
        changes = _changes(part, part.columns(view.effect(view.own) - nothing))
        for region in _worth(changes, part.periods):
            if abs(region.factor) < LITTLE:
                continue
            by = stated(1 + region.factor, _error_of(region, changes))
            yield Found("measured-scaled", {"of": view.of, **_where(part, region), "by": by}, region.left)


def _raised(part: Part) -> Iterator[Found]:
    """The same number added at some places."""
    view = part.view
    unit = float(np.sqrt(np.square(view.own).mean())) or 1.0
    ones = np.full(view.own.shape, unit)
    changes = _changes(part, part.columns(view.effect(view.own + ones) - view.effect(view.own)))
    for region in _worth(changes, part.periods):
        if abs(region.factor) < LITTLE:
            continue
        by = stated(region.factor * unit, _error_of(region, changes) * unit)
        yield Found("measured-raised", {"of": view.of, **_where(part, region), "by": by}, region.left)


def _changes(part: Part, change: Floats, factor: float | None = None) -> Changes:
    error = part.columns(part.view.error)
    total = float(np.square(part.view.error * part.view.scale).sum())
    return Changes((error * change).sum(0), np.square(change).sum(0), total, part.view.error.size, factor)


def _worth(changes: Changes, periods: Sequence[int]) -> Iterator[Region]:
    """The regions that take most of the error; none where not even all places, each by itself, would."""
    if changes.error - changes.most <= changes.error / TAKES:
        yield from (region for region in regions(changes, periods) if region.left <= changes.error / TAKES)


def _where(part: Part, region: Region) -> dict[str, str]:
    return part.places if region.places is None else part.places | {part.name: str(region.places)}


def _error_of(region: Region, changes: Changes) -> float:
    """The standard error of a region's factor."""
    at = Pattern.span(0, len(changes.between)) if region.places is None else region.places
    between = float(changes.between[at.among(len(changes.between))].sum())
    return float(np.sqrt(max(region.left, 0.0) / max(1, changes.equations) / between)) if between > 0 else 0.0


def _replaced(view: View) -> Iterator[Found]:
    """Another tensor's numbers at some places."""
    for values, other in _others(view):
        if NEGLIGIBLE * np.square(other * view.scale).sum() < np.square(view.own * view.scale).sum():
            continue  # next to nothing stands for any other that is
        change = view.effect(other) - view.result
        for part in parts(view):
            changes = _changes(part, part.columns(change), factor=1.0)
            for region in _worth(changes, part.periods):
                yield Found("measured-replaced", {"of": view.of, **_where(part, region), **values}, region.left)


def _others(view: View) -> Iterator[tuple[dict[str, str], Floats]]:
    """The call's own inputs, and what was recorded before it in its layer and in the one before."""
    call, scene = view.call, view.scene
    size = int(np.prod(view.case.computed.shape))
    inputs = ((name, INPUT, x) for name, x in operands(call).items() if name != view.of)
    recorded = (
        (point, of, scene.beside(call, point, layers=layers))
        for of, layers in (("", 0), (BEFORE, -1))
        for point in scene.before(call, layers=layers)
    )
    known: list[Floats] = []
    for name, of, x in chain(inputs, recorded):
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or x.size != size:
            continue
        laid = laid_rows(x, view)
        if laid is not None and not any(np.array_equal(laid, other) for other in known):
            known.append(laid)
            yield {"other": name, "from": of}, laid


def laid_rows(x: Array, view: View) -> Floats | None:
    """Another tensor of as many numbers, laid out as the result, for the recorded tokens; None where it has NaN."""
    shape = view.case.computed.shape
    laid = np.asarray(x, np.float64).reshape(shape if "query" in view.axes else (shape[0], -1))
    laid = laid.take(view.rows, view.token_axis)
    return laid if np.isfinite(laid).all() else None


def _taken(part: Part) -> Iterator[Found]:
    """Numbers taken from elsewhere along the axis."""
    view, axis = part.view, part.axis
    n = view.own.shape[axis]
    if n < 2 or (axis == view.token_axis and list(view.rows) != list(range(n))):  # noqa: PLR2004 - a place and another
        return
    places: dict[int, Pattern] = {}
    columns = {by: part.columns(_moved(part, by)) for by in _shifts(part)}
    error = part.columns(view.error)
    total = float(np.square(view.error * view.scale).sum())

    def without(but: int | None) -> Floats:
        """The error less what the moves take of it, but for one of them."""
        left = error.copy()
        for by, pattern in places.items():
            if by != but:
                at = pattern.among(n)
                left[:, at] -= columns[by][:, at]
        return left

    for by in (*columns, *columns):  # once more with the others known
        rest = without(by)
        change = columns[by]
        changes = Changes(
            (rest * change).sum(0), np.square(change).sum(0), float(np.square(rest).sum()), rest.size, 1.0
        )
        inside = (np.arange(n) + by >= 0) & (np.arange(n) + by < n)
        best = _best_places(changes, part.periods, inside) if changes.error > 0 else None
        if best is not None and changes.of(best)[0] >= (1 - MOVED_LEAST) * changes.error:
            places[by] = best
        else:
            places.pop(by, None)
    left = total - float(np.square(error).sum()) + float(np.square(without(None)).sum())
    if places and len(places) <= MOVES and left <= total / TAKES:
        where = {name: written for name, written in part.places.items() if name != part.name}
        moves = sorted((list(pattern.runs), str(pattern), by) for by, pattern in places.items())
        values = {"of": view.of, **where, "axis": part.name, "moves": [[written, by] for _, written, by in moves]}
        yield Found("measured-taken", values, left)


def _moved(part: Part, by: int) -> Floats:
    """What it changes to take numbers so many places further on, where there are any."""
    view, axis = part.view, part.axis
    n = view.own.shape[axis]
    order = np.arange(n) + by
    order = np.where((order >= 0) & (order < n), order, np.arange(n))
    return view.effect(view.own.take(order, axis)) - view.effect(view.own)


def _best_places(changes: Changes, periods: Sequence[int], inside: npt.NDArray[np.bool_]) -> Pattern | None:
    """The range, or the part of each so many places, that takes most, of the places that have another so far on."""
    n = len(inside)
    found = [region for region in regions(changes, periods, listed=False) if region.places is not None or inside.all()]
    if not found:
        return None
    best = min(region.left for region in found)
    chosen = next(region for region in found if region.left <= best + max(0.0, best))
    pattern = chosen.places or Pattern.span(0, n)
    at = pattern.among(n)
    return pattern if inside[at].all() else Pattern.of(at[inside[at]]) if inside[at].any() else None


def _shifts(part: Part) -> list[int]:
    """By how many places the wrong columns may have been moved, the most frequent first."""
    view = part.view
    error, own = view.error, view.own
    moved = own + error
    if view.of != RESULT:
        with np.errstate(all="ignore"):
            gain = view.effect(own + 1.0) - view.result
            moved = own + np.where(np.abs(gain) > np.abs(gain).max() / 1e3, error / gain, 0.0)
    scale = 1.0 if part.axis == view.token_axis else view.scale
    delta, own, moved = (
        np.moveaxis(part.cut(x * scale), part.axis, -1).reshape(-1, len(part.take[part.axis]))
        for x in (moved - own, own, moved)
    )
    energy = np.square(delta).sum(0)
    wrong = np.flatnonzero(energy > energy.max() / 1e3)
    if not len(wrong) or not np.isfinite(energy).all():
        return []
    some = wrong[np.unique(np.linspace(0, len(wrong) - 1, min(SAMPLED, len(wrong))).astype(np.intp))]
    n = own.shape[1]
    among = np.arange(n) if n <= PEERS else np.arange(max(0, some[0] - PEERS // 2), min(n, some[-1] + PEERS // 2))
    squares = np.square(own[:, among]).sum(0)
    distance = squares[None] - 2 * moved[:, some].T @ own[:, among] + np.square(moved[:, some]).sum(0)[:, None]
    nearest = among[distance.argmin(1)]
    close = distance.min(1) <= energy[some] / 4
    counts = Counter((nearest - some)[close & (nearest != some)].tolist())
    return [by for by, count in counts.most_common(2 * MOVES) if count >= max(1, len(some) // 16)]
