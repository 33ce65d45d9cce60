"""At which positions tokens were rotated, by the angle of each pair."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.places import TAKES
from firstdiff.explaining.measured.statement import Found, is_one, statement, where
from firstdiff.explaining.measured.view import View, tokens_of
from firstdiff.hypotheses.hypothesis import Scene, Values
from firstdiff.model.operations import rope
from firstdiff.model.probe import Call
from firstdiff.model.rope import angles

NEAR, FAR = 128, 4096
"""Positions further on that are tried: all near ones, and far ones that are round."""


def other_positions(view: View) -> Iterator[Found]:
    """Tokens that were rotated as if they stood so many positions further on."""
    call = view.call
    if call.op is not rope:
        return
    x = np.asarray(call.argument("x"), np.float64)[view.rows]
    given = (view.result + view.error).reshape(x.shape)
    dim = call.argument("dim") or x.shape[-1]
    half = dim // 2
    first, second = (
        (np.s_[..., 0:dim:2], np.s_[..., 1:dim:2])
        if call.argument("pairing") == "interleaved"
        else (np.s_[..., :half], np.s_[..., half:dim])
    )
    turned = ((given[first] + 1j * given[second]) * (x[first] - 1j * x[second])).sum(1)  # [T, dim / 2]
    factors = call.argument("factors")
    frequency = angles(
        [1], dim, base=call.argument("base"), scale=call.argument("scale"),
        factors=None if factors is None else factors.values(),
    )[0]  # fmt: skip
    positions = np.asarray(call.argument("positions"))
    own = turned * np.exp(-1j * np.outer(positions[view.rows], frequency))
    far = [sign * n for n in (256, 512, 1000, 1024, 2000, 2048, FAR) for sign in (1, -1)]
    shifts = np.array([*range(-NEAR, NEAR + 1), *far])
    fit = (own @ np.exp(-1j * np.outer(frequency, shifts))).real  # [T, shift]
    best = shifts[fit.argmax(1)]
    size = np.square(given[..., :dim]).sum((1, 2)) + np.square(x[..., :dim]).sum((1, 2))
    wrong = (view.errors > view.case.floor) & (size - 2 * fit.max(1) <= size * (view.errors / TAKES) ** 2)
    squares = view.squares(view.error)
    for by in np.unique(best[wrong]):
        if by:
            here = wrong & (best == by)
            rows = view.rows[here]
            whole = len(rows) == len(view.rows)
            tokens = {} if whole else {"token": str(tokens_of(rows, int(view.rows[-1]) + 1))}
            left = float(squares.sum() - squares[here].sum())
            if left <= squares.sum() / TAKES and (whole or view.by_token):
                yield Found("measured-positions", {**tokens, "by": int(by)}, left)


def positions_moved(call: Call, _scene: Scene, values: Values) -> Call | None:
    """A rotation of some tokens as if they stood so many positions further on."""
    positions = np.array(call.argument("positions"))
    pattern = Pattern.read(values["token"]) if "token" in values else Pattern.span(0, len(positions))
    if not pattern.fits(len(positions)):
        return None
    positions[pattern.among(len(positions))] += values["by"]
    return call.with_arguments(positions=tuple(map(int, positions)))


def _positions(values: Values) -> str:
    who, by = (where(values) or "all tokens") + (" is" if is_one(values) else " are"), values["by"]
    return f"{who} rotated as if they stood {abs(by)} positions {'further on' if by > 0 else 'before'}"


STATEMENTS = (
    statement(
        "measured-positions",
        "some tokens are rotated at other positions",
        positions_moved,
        _positions,
        "give the rotation each token's own position",
        ops=(rope,),
    ),
)
