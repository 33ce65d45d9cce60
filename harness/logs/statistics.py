"""What a log can be held against: statistics of the reference's values, and how far two arithmetics are apart.

The reference runs once in f32, with a twin beside it that computes every operation in another arithmetic on its own
values. No tensor outlives its use: of each site only a sample is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import axes_of, token_axis, with_axis
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import soft_max, visible
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value

SCORES = with_axis("query")
"""Points some of whose entries causality hides."""

EPSILON = 2.0**-23
"""Spacing of f32 at 1. An engine that adds n values up one by one in f32 is off by some sqrt(n) of it."""

NOISE = 4.0  # times the rms difference of logits: see Logits.within_noise in verdict.py

FEWEST = 1e-30
"""Below it is nothing: keeps quotients finite."""


class Number(NamedTuple):
    """A number of the reference's in f32.

    `drift` is how far another correct engine is from it as a rule, `scale` what rounding of activations is relative to.
    """

    value: float
    drift: float
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Statistics of one site's values over some rows.

    Parameters
    ----------
    size
        Number of values, hidden ones not counted.
    numbers
        Statistics by name.
    first, last
        The first and last values, None where a value does not count.
    top
        Logits of the tokens asked for.
    """

    size: int
    numbers: dict[str, Number]
    first: tuple[Number | None, ...]
    last: tuple[Number | None, ...]
    top: dict[int, Number] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """Which of a site's values: those of one row, or (None) of all; hidden scores counted or left out."""

    row: int | None
    hidden: bool


Place = tuple[int, int | None, str]  # step, layer, point


@dataclass(frozen=True, slots=True, eq=False)
class Twins(Value):
    """A value, and the same in the other arithmetic."""

    twin: Array


def _twin(call: Call) -> Call:
    """The call on the twins of its inputs."""
    return call.with_inputs({source: source.twin for source in call.sources if isinstance(source, Twins)})


@dataclass
class Sampling(Probe):
    """Runs freely in one arithmetic with a twin in another, and keeps samples of the sites that are wanted.

    Parameters
    ----------
    twin
        The other arithmetic.
    wanted
        Layers and points to sample.
    values
        How many first and last values to keep.
    ids
        Tokens whose logits to keep.
    every_row
        Sample each token of the prompt on its own too.

    Afterwards `samples` holds what was wanted, `order` the place of every layer and point in execution order, `scale`
    the factor of attention scores, and `rivals`, by step, the two tokens that correct engines may decode after it.
    """

    twin: Arithmetic
    wanted: Collection[tuple[int | None, str]]
    values: int = 0
    ids: Collection[int] = ()
    every_row: bool = False
    samples: dict[Place, dict[View, Sample]] = field(default_factory=dict, init=False)
    order: dict[tuple[int | None, str], int] = field(default_factory=dict, init=False)
    scale: float = field(default=1.0, init=False)
    rivals: dict[int, tuple[int, int]] = field(default_factory=dict, init=False)

    def silent(self, call: Call) -> Value:
        """Compute the value in both arithmetics."""
        with np.errstate(all="ignore"):
            return Twins(call.compute(self.arithmetic), _twin(call).compute(self.twin))

    def value(self, call: Call) -> Value:
        """Compute the value in both arithmetics, sample it, and go on with the first."""
        with np.errstate(all="ignore"):
            value = call.compute(self.arithmetic)
            other = _twin(call).compute(self.twin)
        self.order.setdefault((call.layer, call.point), len(self.order))
        if call.point == "result_output" and (rival := _rival(value[-1], other[-1])) is not None:
            self.rivals[call.step] = int(value[-1].argmax()), rival
        if call.op is soft_max:
            self.scale = float(call.argument("scale"))
        if (call.layer, call.point) in self.wanted:
            self.samples[call.step, call.layer, call.point] = dict(self._sampled(call, value, other))
        return Twins(value, other)

    def _sampled(self, call: Call, value: Array, other: Array) -> Iterator[tuple[View, Sample]]:
        """A sample of every view of a site that may be asked for."""
        axis, scores = token_axis(axes_of(call.point, value.ndim)), call.point in SCORES
        seen = np.broadcast_to(visible(*value.shape[-2:]), value.shape) if scores else None
        rows = range(value.shape[axis]) if self.every_row and call.step == 0 else (value.shape[axis] - 1,)
        ids = self.ids if call.point == "result_output" else ()
        for row in (None, *rows):
            x, y = (np.asarray(v if row is None else v.take(row, axis), np.float64) for v in (value, other))
            mask = seen if seen is None or row is None else seen.take(row, axis)
            for hidden in (False, True) if scores else (False,):
                yield View(row, hidden), _sample(x, y, mask, hidden=hidden, values=self.values, ids=ids)


def _sample(
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    seen: npt.NDArray[np.bool_] | None,
    *,
    hidden: bool,
    values: int,
    ids: Collection[int],
) -> Sample:
    """Statistics of values `x`, with the twin's `y`: of those `seen`, or of all; single values where seen alone."""
    flat, drift = x.reshape(-1), np.abs(y - x).reshape(-1)
    a, b = (x.reshape(-1), y.reshape(-1)) if seen is None or hidden else (x[seen], y[seen])
    numbers = _numbers(a, b)
    rms, unit = numbers["rms"].value, statistics(b - a)["rms"]

    def single(places: range) -> tuple[Number | None, ...]:
        """Single values; a drift that happens to be small says little about that of another engine."""
        return tuple(
            Number(v, max(float(drift[i]), unit * _weight(v, rms)), rms + abs(v))
            if seen is None or seen.reshape(-1)[i]
            else None
            for i in places
            for v in (float(flat[i]),)
        )

    count, row = len(flat), len(flat) - x.shape[-1]  # the last row begins there
    return Sample(
        size=a.size,
        numbers=numbers,
        first=single(range(min(values, count))),
        last=single(range(max(0, count - values), count)),
        top={i: n for i in ids if i < x.shape[-1] and (n := single(range(row + i, row + i + 1))[0]) is not None},
    )


def _numbers(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> dict[str, Number]:
    """Each statistic of `a`, and its drift: the difference to that of `b`, but no less than chance would leave.

    Two engines may happen to have the same mean, which says little about a third. With e the differences of n single
    values, chance leaves e / sqrt(n) of a mean. An rms hangs on its few heavy values: of it chance leaves
    2 e / sqrt(m), where m = (sum x^2)^2 / sum x^4 is how many values carry it; twice, because they drift together.
    """
    one, two = statistics(a), statistics(b)
    rms, n, e = one["rms"], a.size, b - a
    unit = statistics(e)["rms"]
    carriers = (rms**2 * n) ** 2 / max(float(np.sum(a**4)), FEWEST)
    summed = EPSILON * n**0.5 * rms
    heavy = 2 * unit / max(carriers, 1.0) ** 0.5 + summed
    worst = float(np.abs(e).max())
    plain = worst / n**0.5 + summed
    found = {}
    for name, value in one.items():
        times = {"sum": n, "norm": n**0.5}.get(name, 1.0)
        if name in ("min", "max"):
            least, scale = max(unit * _weight(value, rms), worst / 2), rms + abs(value)
        else:
            least, scale = (plain if name in ("mean", "sum") else heavy) * times, rms * times
        found[name] = Number(value, max(abs(two[name] - value), least), scale)
    return found


def _weight(value: float, rms: float) -> float:
    """How much more than others a heavy value drifts."""
    return max(1.0, abs(value) / max(rms, FEWEST))


def _rival(logits: Array, others: Array) -> int | None:
    """The token that another correct engine might choose in place of the first: one within the noise of the logits."""
    top = int(logits.argmax())
    noise = float((others - logits).std())
    behind = np.where(np.arange(len(logits)) == top, -np.inf, logits)
    rival = int(behind.argmax())
    if int(others.argmax()) != top:
        return int(others.argmax())
    return rival if float(logits[top] - logits[rival]) <= NOISE * noise else None


def statistics(x: npt.NDArray[np.float64]) -> dict[str, float]:
    """The statistics that people print, of values in a row."""
    square, mean = float(np.mean(x * x)), float(x.mean())
    return {
        "rms": square**0.5,
        "min": float(x.min()),
        "max": float(x.max()),
        "mean": mean,
        "std": float(x.std()),
        "sum": mean * x.size,
        "norm": (square * x.size) ** 0.5,
    }
