"""Random places of a call, and random changes of the numbers at them, in plain numpy."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses.hypothesis import Scene, with_op
from firstdiff.model.arithmetic import Array
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call

Floats = npt.NDArray[Any]
Make = Callable[[Call, Scene], Call | None]


def places(rng: random.Random, n: int) -> tuple[npt.NDArray[np.intp], str]:
    """Random places along an axis: a range, a tail, a part of each so many, or a single one."""
    how = rng.choice(["range", "range", "tail", "part", "single", "aligned"])
    if how == "part" and n >= 16:
        period = rng.choice([p for p in (4, 8, 16, 32, 64, 128) if 2 * p <= n])
        start = rng.randrange(period)
        length = rng.randint(1, max(1, period // 2))
        within = (np.arange(n) - start) % period
        return np.flatnonzero(within < length), f"{length} from {start} of each {period}"
    if how == "single":
        at = rng.randrange(n)
        return np.array([at]), f"{at}"
    if how == "tail":
        start = n - rng.randint(1, max(1, n // 4))
        return np.arange(start, n), f"{start} to the end"
    if how == "aligned" and n >= 32:
        unit = rng.choice([u for u in (8, 16, 32, 64) if 2 * u <= n])
        start = rng.randrange(0, n // unit) * unit
        stop = min(n, start + unit * rng.randint(1, max(1, n // unit // 4)))
        return np.arange(start, stop), f"{start} up to {stop}"
    start = rng.randrange(n)
    stop = rng.randint(start + 1, min(n, start + max(1, n // 3)))
    return np.arange(start, stop), f"{start} up to {stop}"


def factor(rng: random.Random) -> float:
    return rng.choice([0.0, 0.0, 2.0, 0.5, -1.0, 1.25, 0.85, round(rng.uniform(0.1, 3), 3)])


# What is made of an array [.., n] along its last axis


def altered(rng: random.Random, n: int, *, others: bool) -> tuple[str, Callable[[Floats, Floats | None], Floats]]:
    """A change of the last axis: how it is called, and what makes it of the numbers and of another tensor's."""
    how = rng.choice(
        ["scaled", "scaled", "scaled", "raised", "shifted", "exchanged", *(["replaced"] if others else [])]
    )
    at, told = places(rng, n)
    if how == "scaled":
        by = factor(rng)
        return f"{told} times {by}", lambda x, _: put(x, at, x[..., at] * by)
    if how == "raised":
        by = rng.choice([0.5, -0.25, 1.0, 0.1])
        return f"{told} plus {by}", lambda x, _: put(x, at, x[..., at] + by)
    if how == "shifted":
        by = rng.choice([1, -1, 2, 8, -8, 32, -16])
        at = at[(at + by >= 0) & (at + by < n)]
        return f"{told} taken {by} further on", lambda x, _: put(x, at, x[..., at + by])
    if how == "exchanged":
        length = rng.randint(1, max(1, n // 4))
        a = rng.randrange(0, n - 2 * length + 1) if n >= 2 * length else 0
        b = rng.randint(a + length, n - length) if n >= 2 * length else a
        one, two = np.arange(a, a + length), np.arange(b, min(n, b + length))
        return f"{a} and {b} exchanged, {length} long", lambda x, _: put(put(x, one, x[..., two]), two, x[..., one])
    return f"{told} of another tensor", lambda x, other: put(x, at, other[..., at])


def put(x: Floats, at: npt.NDArray[np.intp], new: Floats) -> Floats:
    y = np.array(x)
    y[..., at] = new
    return y


def result(call: Call, change: Callable[[Floats], Floats]) -> Call:
    """A call whose result is changed."""
    op = call.op

    def computed(*inputs: object, arithmetic: Any, **attributes: object) -> Array:
        y = op(*inputs, arithmetic=arithmetic, **attributes)
        return np.ascontiguousarray(change(y)).astype(y.dtype)

    return with_op(call, Derived(op, computed, sizes=lambda size: size))


def of_features(change: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    """A change of the features of each token, heads side by side."""
    return lambda y: change(y.reshape(len(y), -1)).reshape(y.shape)
