"""Fitting one continuous parameter of a hypothesis to what a candidate recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import axes_of, token_axis
from firstdiff.hypotheses.hypothesis import Change, Scene, telling
from firstdiff.hypotheses.products import cut, spread
from firstdiff.model.arithmetic import Array
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.model.token_rows import rows_of

STEPS = 16
"""Gauss-Newton doubles the right digits at each step: eight make 1e-7 of a start that is off by a half. Eight more go
a long way first."""

HALVINGS = 12
"""How often a step is halved that leaves more than before: a parameter may be off by a thousand times itself."""

SETTLED, UNSETTLED = 1e-9, 1e-3
"""Relative step after which nothing moves any more, and that of a parameter which runs away."""

NUDGE = 1e-3
"""Relative change of the parameter that the derivative is taken over: float32 leaves it good to 1e-4."""

OUTPUTS = 256
"""Of a product with more outputs, logits, so many are enough to fit to."""

DIGITS = range(1, 8)
"""Significant digits that a fitted number is stated in: the fewest that say what is known of it."""

SAME = 1e-6
"""Relative distance up to which two numbers are the same, held in float32 and in float64."""

FINEST = 1e-8
"""Relative distance below which no float32 says anything."""

ERRORS = 3.0
"""Standard errors within which a rounder number is as good as the fitted one."""

NEAR = 1e-5
"""Relative distance at which a fitted number is the rounder one in all likelihood, where what is left is systematic, as
of frequencies that an engine holds in float32, and says little of how far the fit may be off."""


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """The ways of a hypothesis with one continuous parameter.

    Parameters
    ----------
    change
        The hypothesis' change.
    name
        The parameter.
    listed
        Values to try as they are, the likeliest first; the first is planted. Given what was observed, they come after
        the fitted value, and are what it is stated as where one of them is as good.
    starts
        Values to fit from, given what was observed; by default the listed value that leaves least.
    without
        Values that are no fault, or that another hypothesis calls by their name: a fit that ends at one claims nothing.
    """

    change: Change
    name: str
    listed: Callable[[Call, Scene], Iterable[float]]
    starts: Callable[[Call, Scene, Array], Iterable[float]] | None = None
    without: Callable[[Call, Scene], Iterable[float]] = lambda _call, _scene: ()

    def __call__(self, call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, float]]:
        """Yield the fitted value, if what was observed has one, and those that are listed."""
        excluded = list(self.without(call, scene))
        tried = [v for v in dict.fromkeys(self.listed(call, scene)) if not _among(v, 0.0, excluded)]
        begin = tried
        if observed is not None and scene.later is None:
            call, observed = _recorded(call, observed)
        fitted = None
        if observed is not None and np.isfinite(observed).all() and telling(observed):
            fit = _Fit.of(call, scene, self.change, self.name, observed)
            if self.starts is not None and scene.later is None:
                begin = list(self.starts(call, scene, observed))
            fitted = fit.best(begin)
        if fitted is not None and _among(*fitted, excluded):
            return  # it is something else, and no other number does better
        if fitted is not None:
            first = _stated(*fitted, tried, excluded)
            yield {self.name: first}
            tried = [v for v in tried if v != first]
        yield from ({self.name: v} for v in tried)


def _recorded(call: Call, observed: Array) -> tuple[Call, Array]:
    """A call and its result, of the recorded rows alone, where the others (NaN) have no part in these."""
    axis = token_axis(axes_of(call.point, observed.ndim))
    missing = np.isnan(observed).all(tuple(i for i in range(observed.ndim) if i != axis))
    rows = np.flatnonzero(~missing)
    of = rows_of(call, rows) if missing.any() else None
    return (call, observed) if of is None else (of, observed.take(rows, axis))


def _among(value: float, error: float, excluded: Iterable[float]) -> bool:
    """Whether a number is one of those that stand for something else, as far as it is known."""
    return any(abs(value - other) <= max(error, SAME * (abs(other) or 1.0)) for other in excluded)


def _stated(value: float, error: float, listed: Iterable[float], excluded: Iterable[float]) -> float:
    """The likeliest number that lies within `error` of a fitted one: a listed one, or that of the fewest digits."""
    rounder = (float(f"{value:.{digits}g}") for digits in DIGITS)
    good = (v for v in (*listed, *rounder) if abs(v - value) <= error and not _among(v, 0.0, excluded))
    return next(good, value)


def _size(value: float, start: float) -> float:
    """What changes of a parameter are a share of: a change of one near 0 that is a share of itself shows nothing."""
    return max(abs(value), abs(start) / 10) or 1.0


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """Least squares for one parameter, over all elements of what was observed.

    `weights` are one over the size of each token, so that all count alike, as they do in a local error; `rest` are the
    axes within a token.
    """

    call: Call
    scene: Scene
    change: Change
    name: str
    observed: Array
    weights: npt.NDArray[np.float64]
    rest: tuple[int, ...]

    @classmethod
    def of(cls, call: Call, scene: Scene, change: Change, name: str, observed: Array) -> _Fit:
        """The fit to what was observed, or to some outputs of a large product."""
        if call.op is linear and scene.later is None and observed.shape[-1] > OUTPUTS:
            chosen = spread(observed.shape[-1], OUTPUTS)
            call, observed = cut(call, chosen), np.ascontiguousarray(observed[..., chosen])
        point = call.point if scene.later is None else scene.later.point
        token = token_axis(axes_of(point, observed.ndim))
        rest = tuple(i for i in range(observed.ndim) if i != token)
        size = np.sqrt((np.asarray(observed, np.float64) ** 2).sum(rest, keepdims=True))
        return cls(call, scene, change, name, observed, 1 / np.maximum(size, 1e-30), rest)

    def best(self, starts: Iterable[float]) -> tuple[float, float] | None:
        """The fitted value from the best start, and how far off it may be; None where nothing can be fitted."""
        left = {v: np.inf if (r := self._left(v)) is None else float(np.linalg.norm(r)) for v in starts}
        begin = [v for v in left if np.isfinite(left[v])]
        if not begin:
            return None
        start = min(begin, key=left.__getitem__)
        value = self._gauss_newton(start)
        return None if value is None else (value, self._error(value, start))

    def _left(self, value: float) -> npt.NDArray[np.float64] | None:
        """What a value of the parameter leaves of the error at each element, weighted."""
        changed = self.change(self.call, self.scene, {self.name: value})
        if changed is None:
            return None
        with np.errstate(all="ignore"):
            computed = np.asarray(self.scene.observable(changed), np.float64)
        return (self.observed - computed) * self.weights

    def _slope(
        self, value: float, start: float
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float] | None:
        """What a value leaves, how it changes what is computed, and the square of that; None where it does not."""
        step = NUDGE * _size(value, start)
        left, there = self._left(value), self._left(value + step)
        if left is None or there is None:
            return None
        slope = (left - there) / step
        power = float((slope**2).sum())
        return (left, slope, power) if np.isfinite(power) and power > 0 else None

    def _gauss_newton(self, start: float) -> float | None:
        """Least squares over all elements; None where the parameter changes nothing or runs away.

        A step that leaves more than before is halved until it does not, so that the range needs no ends.
        """
        value, move = start, inf
        for _ in range(STEPS):
            if (sloped := self._slope(value, start)) is None:
                return None
            left, slope, power = sloped
            move = float((slope * left).sum()) / power
            if not isfinite(move):
                return None
            before = float(np.linalg.norm(left))
            for _ in range(HALVINGS):
                there = self._left(value + move)
                if there is not None and float(np.linalg.norm(there)) <= before:
                    value += move
                    break
                move /= 2
            else:
                return value  # nothing near leaves less
            if abs(move) <= SETTLED * _size(value, start):
                break
        settled = abs(move) <= max(UNSETTLED * _size(value, start), self._error(value, start))
        return value if settled else None

    def _error(self, value: float, start: float) -> float:
        """How far off a fitted value may be: some standard errors.

        Rounding is each element's own, or shared within a token (a norm's mean) or by values of one size (clipped
        ones): the largest of these counts.
        """
        if (sloped := self._slope(value, start)) is None:
            return 0.0
        left, slope, power = sloped
        pulls = slope * left
        with np.errstate(over="ignore"):
            equal = np.abs(self.observed).astype(np.float16).view(np.uint16).ravel()
        groups = pulls, pulls.sum(self.rest), np.bincount(equal, pulls.ravel())
        variance = max(float((pull**2).sum()) for pull in groups) / power**2
        likely = min(NEAR * abs(value), np.linalg.norm(left) / np.sqrt(power))
        return float(max(ERRORS * np.sqrt(variance), likely, FINEST * abs(value)))
