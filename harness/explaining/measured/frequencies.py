"""How fast each pair of dimensions was turned, by its angle at each position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.places import TAKES
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values, with_op
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived, rope
from firstdiff.model.probe import Call
from firstdiff.model.rope import angles

Floats = npt.NDArray[np.float64]
Slices = tuple[Any, Any]

LEAST = 3
"""Positions by which a frequency is measured."""

FINE = 8
"""Trial frequencies for each turn that the positions span."""

MOST_POSITIONS = 4096
"""Positions beyond which frequencies are not sought: there would be too many to try."""

KEPT = 1e-2
"""How far the length of a pair may be off, relative to its part, for the two dimensions to be a pair."""


def pairs_of(pairing: str, dim: int) -> Slices:
    """Which dimensions turn together: the first of each pair, and the second."""
    half = dim // 2
    if pairing == "interleaved":
        return np.s_[..., 0:dim:2], np.s_[..., 1:dim:2]
    return np.s_[..., :half], np.s_[..., half:dim]


def own_frequencies(call: Call, dim: int) -> Floats:
    """The angle for each position of each pair, radians [dim / 2]."""
    factors = call.argument("factors")
    scaled = None if factors is None else factors.values()
    found = angles([1], dim, base=call.argument("base"), scale=call.argument("scale"), factors=scaled)
    return np.asarray(found[0])


def other_frequencies(view: View) -> Iterator[Found]:
    """Pairs that turn at other speeds, or are made of other dimensions."""
    call = view.call
    if call.op is not rope:
        return
    x = np.asarray(call.argument("x"), np.float64)[view.rows]
    given = (view.result + view.error).reshape(x.shape)
    positions = np.asarray(call.argument("positions"), np.float64)[view.rows]
    span = float(np.ptp(positions))
    dim = x.shape[-1]
    if len(np.unique(positions)) < LEAST or span > MOST_POSITIONS or dim % 2:
        return
    own = own_frequencies(call, call.argument("dim") or dim)
    own = np.concatenate([own, np.zeros(dim // 2 - len(own))])
    size = np.square(given).sum()
    for pairing in dict.fromkeys((call.argument("pairing"), "half", "interleaved")):
        first, second = pairs_of(pairing, dim)
        before, after = x[first] + 1j * x[second], given[first] + 1j * given[second]
        if (
            np.square(np.abs(after) - np.abs(before)).sum()
            > KEPT * max(float(np.square(view.errors).max()), 1e-12) * size
        ):
            continue
        turned = (after * before.conj()).sum(1)  # [T, pair]
        speeds = _fastest(turned, positions, own)
        left = float(np.square(after - before * np.exp(1j * np.outer(positions, speeds))[:, None]).__abs__().sum())
        whole = float(np.square(view.error * view.scale).sum())
        wrong = float(np.square(given - view.result.reshape(x.shape)).sum())
        if wrong > 0 and left <= wrong / TAKES:
            values = {"pairing": pairing, "turns": [float(f"{s:.9g}") for s in speeds], "as": _as(speeds, own)}
            yield Found("measured-turns", values, left / wrong * whole)


def _fastest(turned: npt.NDArray[np.complex128], positions: Floats, own: Floats) -> Floats:
    """The speed of each pair that goes best with its angles: the own one's neighbourhood, and all others."""
    span = float(np.ptp(positions))
    count = int(FINE * span) + 16
    grid = np.linspace(-np.pi, np.pi, count, endpoint=False)
    fit = (np.exp(-1j * np.outer(grid, positions)) @ turned).real  # [trial, pair]
    best = grid[fit.argmax(0)]
    aligned = (turned * np.exp(-1j * np.outer(positions, own))).sum(0).real
    best = np.where(aligned >= fit.max(0), own, best)
    for _ in range(12):  # Newton's steps on the phase, each pair by itself
        phase = turned * np.exp(-1j * np.outer(positions, best))
        slope = (positions[:, None] * phase.imag).sum(0)
        curve = (positions[:, None] ** 2 * phase.real).sum(0)
        step = np.where(curve > 0, slope / np.where(curve > 0, curve, 1), 0.0)
        best = best + np.clip(step, -np.pi / count, np.pi / count)
    return np.asarray(best, np.float64)


def _as(speeds: Floats, own: Floats) -> str:
    """What the speeds are beside the right ones, in words."""
    still = np.abs(speeds) < 1e-6  # noqa: PLR2004 - a turn in six million positions
    if still.all():
        return "not at all"
    fast = np.abs(own) > 1e-3  # noqa: PLR2004 - slow pairs hardly turn, and say little
    moving = fast & ~still
    if moving.any():
        ratio = speeds[moving] / own[moving]
        if np.ptp(ratio) <= 1e-3 * np.abs(ratio).max():
            all_of_them = "" if (still <= ~fast).all() else f", and {int((still & fast).sum())} pairs not at all"
            factor = float(f"{np.median(ratio):.4g}")
            return (
                f"at the right speed{all_of_them}"
                if factor == 1
                else f"{factor:g} times as fast as they should{all_of_them}"
            )
        if (speeds[moving] > 0).all() and moving.sum() > LEAST:
            index = np.flatnonzero(moving)
            slope, start = np.polyfit(index, np.log(speeds[moving]), 1)
            if np.abs(np.log(speeds[moving]) - start - slope * index).max() < 1e-3:  # noqa: PLR2004
                base = float(np.exp(-slope * len(own)))
                scaled = "" if abs(start) < 1e-3 else f" and all speeds times {np.exp(start):.4g}"  # noqa: PLR2004
                return f"as with a base of {base:.6g}{scaled}"
    return f"{len(speeds)} speeds that follow no rule that firstdiff knows"


def turned(call: Call, _scene: Scene, values: Values) -> Call | None:
    """A rotation of pairs at given speeds."""
    speeds, pairing = np.asarray(values["turns"], np.float64), values["pairing"]
    if 2 * len(speeds) != call.argument("x").shape[-1]:
        return None
    op = call.op

    def rotated(x: Array, positions: Any, *_: Any, arithmetic: Arithmetic, **__: Any) -> Array:  # noqa: ANN401
        first, second = pairs_of(pairing, 2 * len(speeds))
        theta = np.outer(np.asarray(positions, np.float64), speeds)[:, None]
        x = arithmetic.widen(x)
        cos, sin = (arithmetic.keep(arithmetic.widen(f(theta))) for f in (np.cos, np.sin))
        y = np.empty_like(x)
        y[first] = arithmetic.keep(x[first] * cos) - arithmetic.keep(x[second] * sin)
        y[second] = arithmetic.keep(x[first] * sin) + arithmetic.keep(x[second] * cos)
        return y

    return with_op(call, Derived(op, rotated))


def _turns(values: Values) -> str:
    pairs = {"half": "the dimensions i and i + half", "interleaved": "the dimensions 2i and 2i + 1"}[values["pairing"]]
    return f"the rotation turns {pairs} together, {values['as']}"


STATEMENTS = (
    statement(
        "measured-turns",
        "pairs turn at other speeds",
        turned,
        _turns,
        "compare the frequencies and the pairs of the rotation with those of the file's architecture",
        ops=(rope,),
    ),
)
