"""Fitting one continuous parameter of a hypothesis to what a candidate recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.cases import cut, spread
from firstdiff.hypotheses.hypothesis import Change, Scene
from firstdiff.measure import axes_of
from firstdiff.model.arithmetic import Array
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call

STEPS = 8
"""Gauss-Newton doubles the right digits at each step: eight make 1e-7 of a start that is off by a half."""

NUDGE = 1e-3
"""Relative change of the parameter that the derivative is taken over: float32 leaves it good to 1e-4."""

OUTPUTS = 256
"""Of a product with more outputs, logits, so many are enough to fit to."""

DIGITS = (1, 2, 3, 4)
"""Significant digits to which a fitted number is rounded, to see whether the rounder one does as well."""


def numbers(
    change: Change,
    name: str,
    listed: Callable[[Call, Scene], Iterable[float]],
    *,
    starts: Callable[[Call, Scene, Array], Iterable[float]] | None = None,
    without: Callable[[Call, Scene], Iterable[float]] = lambda _call, _scene: (),
) -> Callable[[Call, Scene, Array | None], Iterator[dict[str, float]]]:
    """Make the ways of a hypothesis with one continuous parameter.

    Parameters
    ----------
    change
        The hypothesis' change.
    name
        The parameter.
    listed
        Values to try as they are, the likeliest first; the first is planted.
    starts
        Values to fit from, given what was observed; by default the listed value that leaves least.
    without
        Values that stand for something else (the right one, above all), which a fit must not end at.
    """

    def ways(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, float]]:
        excluded = list(without(call, scene))
        tried = [v for v in dict.fromkeys(listed(call, scene)) if not _among(v, excluded)]
        yield from ({name: v} for v in tried)
        call, observed = (call, None) if observed is None else _recorded(call, observed)
        if observed is None or not np.isfinite(observed).all():
            return
        if call.op is linear and observed.shape[-1] > OUTPUTS:
            chosen = spread(observed.shape[-1], OUTPUTS)
            call, observed = cut(call, chosen), np.ascontiguousarray(observed[..., chosen])
        residual = _residual(call, scene, change, name, observed)
        begin = list(starts(call, scene, observed)) if starts is not None else tried
        begin = [v for v in begin if np.isfinite(residual(v))]
        if not begin:
            return
        value = _gauss_newton(call, scene, change, name, observed, min(begin, key=residual))
        if value is None:
            return
        for rounder in (float(f"{value:.{digits}g}") for digits in DIGITS):
            if not _among(rounder, excluded):
                yield {name: rounder}
        if not _among(value, excluded):
            yield {name: value}

    return ways


def _recorded(call: Call, observed: Array) -> tuple[Call, Array]:
    """A call and its result, of the recorded rows alone, where the others (NaN) have no part in these."""
    missing = np.asarray(np.isnan(observed).all(tuple(range(1, observed.ndim))))
    rows = np.flatnonzero(~missing)
    given = [x for x in call.inputs if isinstance(x, np.ndarray | list)]
    if not missing.any() or not len(rows) or any(np.ndim(x) != 2 or len(x) != len(missing) for x in given):  # noqa: PLR2004
        return call, observed
    inputs = tuple(x[rows] if isinstance(x, np.ndarray) else x for x in call.inputs)
    return replace(call, inputs=inputs), observed[rows]


def _among(value: float, excluded: Iterable[float]) -> bool:
    return any(abs(value - other) <= 1e-3 * max(abs(other), 1e-12) for other in excluded)


def _computed(call: Call, scene: Scene, change: Change, name: str, value: float) -> npt.NDArray[np.float64] | None:
    changed = change(call, scene, {name: value})
    if changed is None:
        return None
    with np.errstate(all="ignore"):
        return np.asarray(changed.compute(scene.arithmetic), np.float64)


def _weights(call: Call, observed: Array) -> npt.NDArray[np.float64]:
    """One over the size of each token, so that all count alike, as they do in a local error."""
    axes = axes_of(call.point)
    rest = tuple(i for i, axis in enumerate(axes) if axis != "tokens")
    size = np.sqrt((np.asarray(observed, np.float64) ** 2).sum(rest, keepdims=True))
    return np.asarray(1 / np.maximum(size, 1e-30))


def _residual(call: Call, scene: Scene, change: Change, name: str, observed: Array) -> Callable[[float], float]:
    weights = _weights(call, observed)

    def residual(value: float) -> float:
        computed = _computed(call, scene, change, name, value)
        return np.inf if computed is None else float(np.linalg.norm((computed - observed) * weights))

    return residual


def _gauss_newton(call: Call, scene: Scene, change: Change, name: str, observed: Array, start: float) -> float | None:
    """Least squares over all elements; None where the parameter changes nothing or runs away."""
    weights, value = _weights(call, observed), start
    for _ in range(STEPS):
        step = NUDGE * (abs(value) or 1.0)
        here, there = (_computed(call, scene, change, name, v) for v in (value, value + step))
        if here is None or there is None:
            return None
        slope = (there - here) * weights / step
        power = float((slope**2).sum())
        if not (np.isfinite(power) and power > 0):
            return None
        move = float((slope * (observed - here) * weights).sum()) / power
        if value > 0:  # a positive number stays one, and at most halves or doubles
            move = min(max(move, -value / 2), value)
        value += move
        if abs(move) <= 1e-9 * abs(value):
            break
    return value if np.isfinite(value) else None
