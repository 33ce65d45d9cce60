"""One operand of a wrong call, or its result, beside what the candidate's numbers say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.alteration import RESULT, laid_out
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.hypotheses.hypothesis import Scene
from firstdiff.hypotheses.products import spread
from firstdiff.judging.case import Case
from firstdiff.model.arithmetic import Array
from firstdiff.model.graph.operation import NodeOperation
from firstdiff.model.probe import Call

Floats = npt.NDArray[np.float64]


MOST = 1 << 23
"""Numbers by which a result is measured: of larger ones those of some tokens."""


@dataclass(frozen=True, eq=False)
class View:
    """What is changed, and what the change does to the result, element by element.

    Parameters
    ----------
    case, scene
        What is to be explained, and what surrounds it.
    of
        The operand's name, or ``result``.
    own
        Its right numbers, laid out as the result, for the recorded tokens: [token, feature] or [head, query, key].
    error
        What the candidate's result has more than the right one, 0 where nothing counts.
    effect
        Gives the result for other numbers in the place of `own`.
    result
        The right result, so laid out.
    axes
        Names of its axes.
    rows
        Which tokens were recorded.
    scale
        One over the norm of each token's result, 1 along other axes.
    apart
        Whether the operand's places are not the result's: what multiplies some of them multiplies no places there.
    by_token
        Whether rows are tokens, and all that were recorded.
    """

    case: Case
    scene: Scene
    of: str
    own: Floats
    error: Floats
    effect: Callable[[Floats], Floats]
    result: Floats
    axes: tuple[str, ...]
    rows: npt.NDArray[np.intp]
    scale: Floats
    apart: bool = False
    by_token: bool = True

    @property
    def call(self) -> Call:
        """The wrong call."""
        return self.case.call

    @property
    def token_axis(self) -> int:
        """Which axis the tokens lie along."""
        return 1 if "query" in self.axes else 0

    def with_operand(self, of: str, own: Floats, effect: Callable[[Floats], Floats]) -> View:
        """The same with another operand."""
        return replace(self, of=of, own=own, effect=effect)

    @cached_property
    def errors(self) -> Floats:
        """The relative error of each token."""
        return np.sqrt(self.squares(self.error))

    def squares(self, x: Floats) -> Floats:
        """The squared norm of each token of an array, relative to the result's."""
        rest = tuple(i for i in range(x.ndim) if i != self.token_axis)
        return np.asarray(np.square(x * self.scale).sum(rest), np.float64)

    @property
    def selections(self) -> list[tuple[dict[str, str], npt.NDArray[np.intp]]]:
        """All recorded tokens; then the wrong ones alone, where some are right."""
        everyone = np.arange(len(self.rows))
        wrong = np.flatnonzero(self.errors > self.case.floor)
        made: list[tuple[dict[str, str], npt.NDArray[np.intp]]] = [({}, everyone)]
        if self.by_token and 0 < len(wrong) < len(self.rows):
            name = self.axes[self.token_axis]
            made.append(({name: str(tokens_of(self.rows[wrong], int(self.rows[-1]) + 1))}, wrong))
        return made

    def of_tokens(self, x: Floats, tokens: npt.NDArray[np.intp]) -> Floats:
        """Some of the recorded tokens of an array."""
        return x.take(tokens, self.token_axis)


def tokens_of(rows: npt.NDArray[np.intp], count: int) -> Pattern:
    """The places of some tokens, as one of each so many where that says it."""
    for period in (2, 3, 4, 8, 16):
        within = np.unique(rows % period)
        if len(rows) > period and len(within) == 1 and (np.arange(within[0], count, period).tolist() == rows.tolist()):
            return Pattern.span(int(within[0]), int(within[0]) + 1, period)
    return Pattern.of(rows)


def view_of(case: Case, scene: Scene) -> View | None:
    """The result of a case's judged call; None where it is not one of finite numbers that can be laid out."""
    computed = np.asarray(case.computed)
    if computed.shape != case.recorded.shape or computed.ndim < 2:  # noqa: PLR2004 - tokens and what they have
        return None
    right, axes = laid_out(computed, case.site.point)
    wrong, _ = laid_out(np.asarray(case.recorded), case.site.point)
    token = 1 if "query" in axes else 0
    rest = tuple(i for i in range(right.ndim) if i != token)
    counts = np.isfinite(right)
    if case.seen is not None:
        counts = counts & np.broadcast_to(case.seen, case.computed.shape).reshape(right.shape)
    if not np.isfinite(wrong[counts]).all():
        return None
    recorded = np.flatnonzero(counts.any(rest))
    if not len(recorded):
        return None
    rows = recorded[spread(len(recorded), max(1, MOST // (right.size // right.shape[token])))]
    counts = counts.take(rows, token)
    result, given = (np.where(counts, x.take(rows, token), 0).astype(np.float64) for x in (right, wrong))
    error = given - result
    size = np.sqrt(np.square(result).sum(rest, keepdims=True))
    size = np.where(size > 0, size, np.sqrt(np.square(error).sum(rest, keepdims=True)))
    scale = 1 / np.where(size > 0, size, 1.0)
    return View(
        case, scene, RESULT, result, error, same, result, axes, rows, scale, by_token=len(rows) == len(recorded)
    )


def operands(call: Call) -> dict[str, Any]:
    """The operands of a call by name; none of a node of llama.cpp's graph, whose operands have no names."""
    return {} if isinstance(call.op, NodeOperation) else call.arguments


def same(x: Floats) -> Floats:
    """The effect of what is the result itself."""
    return x


def rows_of_operand(x: Array, view: View) -> Floats:
    """An operand that has a row for each token, laid out as the result: [token, feature]."""
    return np.asarray(x, np.float64).reshape(len(x), -1)[view.rows]
