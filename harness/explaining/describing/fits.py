"""One factor or one offset for a tensor, or for each token, head, channel of it, fitted by least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from math import prod
from typing import Any

import numpy as np

from firstdiff.explaining.describing.compared import Compared, Floats, Mask, changed, left
from firstdiff.explaining.describing.finding import Finding, Subject, subject
from firstdiff.explaining.describing.regularity import numbered, shortest

Grouping = tuple[str, ...]
Fit = Callable[[Compared, Grouping], tuple[Floats, Floats]]
"""Gives the parameters, with length 1 along the axes that they do not depend on, and the values they predict."""

WHOLE: Grouping = ()

ALIKE = 4.0
"""Parameters that differ by no more than 4 floors are one: each is off by a fraction of the floor."""

DATA, SPARE, TOLD = 2, 8, 0.05
"""A fit needs twice as many numbers as parameters, and eight more: fewer fit anything. And it must change one number
in 20 by more than the floor: massive activations, one number in a thousand, say nothing of the others."""

SHOWN = 64  # parameters in a finding's values


def groupings(x: Compared) -> list[Grouping]:
    """Axes along which parameters may differ, those with the fewest parameters first."""
    names = [a for a in x.axes if x.lengths[a] > 1]
    sets = [s for size in range(1, len(names)) for s in combinations(names, size)]
    return sorted(sets, key=lambda s: prod(x.lengths[a] for a in s))


def fitted(x: Compared, part: Compared, tried: Iterable[Grouping]) -> Iterator[Finding]:
    """The first factor or offset that holds, tried on a part before it is on the whole."""
    for grouping in tried:
        for fit, found in ((factors, _factor), (offsets, _offset)):
            if _holds(part, grouping, fit) and _holds(x, grouping, fit):
                parameters, predicted = fit(x, grouping)
                wrong = _wrong(x, grouping, predicted)
                yield found(x, grouping, parameters, wrong, left(x, predicted).share)
                return


def _holds(x: Compared, grouping: Grouping, fit: Fit) -> bool:
    """Whether a fit leaves what it may, and the parameters that are not neutral rest on enough numbers."""
    found, predicted = fit(x, grouping)
    if found.size * DATA > x.counts.sum() or not left(x, predicted).holds:
        return False
    wrong = _wrong(x, grouping, predicted)
    numbers = x.counts & wrong & (x.reference != 0)
    count, told = np.count_nonzero(numbers), np.count_nonzero(numbers & changed(x, predicted))
    parameters = np.count_nonzero(wrong)
    return bool(0 < parameters * DATA <= told and told >= parameters + SPARE and told >= TOLD * count)


def _wrong(x: Compared, grouping: Grouping, predicted: Floats) -> Mask:
    """Which parameters change what they are for by more than the floor."""
    over = _over(x, grouping)
    change, size, count = (
        v.sum(over, keepdims=True)
        for v in (((predicted - x.reference) * x.scale) ** 2, (x.reference * x.scale) ** 2, x.counts / x.row)
    )
    wrong: Mask = change > x.floor**2 * np.maximum(size, count)
    return wrong


def factors(x: Compared, grouping: Grouping) -> tuple[Floats, Floats]:
    """Least squares factors, 1 where the reference is zero."""
    over = _over(x, grouping)
    c, r = x.candidate * x.scale, x.reference * x.scale
    power = (r * r).sum(over, keepdims=True)
    found = np.where(power > 0, (c * r).sum(over, keepdims=True) / np.where(power > 0, power, 1.0), 1.0)
    return found, found * x.reference


def offsets(x: Compared, grouping: Grouping) -> tuple[Floats, Floats]:
    """Least squares offsets, 0 where nothing counts."""
    over = _over(x, grouping)
    weight = np.where(x.counts, x.scale**2, 0.0)
    total = weight.sum(over, keepdims=True)
    found = ((x.candidate - x.reference) * weight).sum(over, keepdims=True) / np.where(total > 0, total, 1.0)
    return found, np.where(x.counts, x.reference + found, 0.0)


def _over(x: Compared, grouping: Grouping) -> tuple[int, ...]:
    return tuple(i for i, a in enumerate(x.axes) if a not in grouping)


def _factor(x: Compared, grouping: Grouping, found: Floats, wrong: Mask, share: float) -> Finding:
    low, high = float(found[wrong].min()), float(found[wrong].max())
    who = subject(x, wrong, np.ones_like(wrong)) or Subject("some", many=True)
    if not grouping or (high - low <= ALIKE * x.floor * max(abs(low), abs(high)) and not wrong.all()):
        says = f"{who.are} {numbered(float(found[wrong].mean()), x.lengths, x.floor)} times the expected"
    else:
        says = (
            f"{_each(grouping)} is multiplied by a factor of its own, {_range(low, high, x.floor)}{_only(who, wrong)}"
        )
    return Finding("constant-factor", says, _values(grouping, "factors", found, low, high), share)


def _offset(x: Compared, grouping: Grouping, found: Floats, wrong: Mask, share: float) -> Finding:
    near = x.floor * float(x.rms.min())
    low, high = float(found[wrong].min()), float(found[wrong].max())
    who = subject(x, wrong, np.ones_like(wrong)) or Subject("some", many=True)
    if not grouping or (high - low <= ALIKE * near and not wrong.all()):
        says = f"{who.are} the expected plus {shortest(float(found[wrong].mean()), x.floor)}"
    else:
        says = f"{_each(grouping)} has an offset of its own, {_range(low, high, x.floor)}{_only(who, wrong)}"
    return Finding("constant-offset", says, _values(grouping, "offsets", found, low, high), share)


def _each(grouping: Grouping) -> str:
    return "each " + " and ".join(grouping)


def _range(low: float, high: float, floor: float) -> str:
    return f"{shortest(low, floor)} to {shortest(high, floor)}"


def _only(who: Subject, wrong: Mask) -> str:
    return "" if wrong.all() else f" (only {who.words})"


def _values(grouping: Grouping, name: str, found: Floats, low: float, high: float) -> dict[str, Any]:
    values: dict[str, Any] = {"per": list(grouping), "least": low, "most": high}
    return values | ({name: [float(v) for v in found.ravel()]} if found.size <= SHOWN else {})
