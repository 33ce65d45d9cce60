"""Values of a replay: which rows are the candidate's own, what went before, and what is known to be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from firstdiff.dumps import Site
from firstdiff.dumps.points import Kind, axes_of, kind_of, token_axis
from firstdiff.judging import floors
from firstdiff.judging.case import Done
from firstdiff.judging.rows import Mask
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.attention import append, attend, scores
from firstdiff.model.graph.operation import NodeOperation
from firstdiff.model.moves import MOVES
from firstdiff.model.probe import Call
from firstdiff.model.shapes import shape_of
from firstdiff.model.value import Value
from firstdiff.verdict import Status


@dataclass(frozen=True, slots=True, eq=False)
class Traced(Value):
    """A value of a replay, and where it comes from.

    Parameters
    ----------
    wrong
        Whether something upstream diverges.
    before
        The calls between the last recorded values and this one, without its own.
    call
        The call that computed it; None where the candidate recorded it.
    lost
        The relative error that storing the value in a narrow dtype may have caused.
    overflowed
        Whether the candidate stored it in f16 as infinity, and computed in more.
    scaled
        A query as the candidate scales it before the scores; None where it does not.
    rows
        The rows that are the candidate's own, recorded or computed of recorded ones; None for all.
    free
        By how much the other rows may be off, which were computed from far behind: relative to themselves.
    """

    wrong: bool
    before: tuple[Done, ...] = ()
    call: Call | None = None
    lost: float = 0.0
    overflowed: bool = False
    scaled: Array | None = None
    rows: Mask | None = None
    free: float = 0.0

    @property
    def pending(self) -> tuple[Done, ...]:
        """The calls since the last recorded values."""
        return self.before if self.call is None else (*self.before, Done(self.call, self))


@dataclass(frozen=True, slots=True)
class Upstream:
    """What is known of all inputs of a call together: see :class:`Traced`."""

    wrong: bool
    pending: tuple[Done, ...]
    lost: float
    overflowed: bool
    rows: Mask | None
    free: float

    @classmethod
    def of(cls, call: Call) -> Upstream:
        """What is known of a call's inputs."""
        inputs = [x for x in call.sources if isinstance(x, Traced)]
        return cls(
            wrong=any(x.wrong for x in inputs),
            pending=tuple({done.value: done for x in inputs for done in x.pending}.values()),
            lost=max((x.lost for x in inputs), default=0.0),
            overflowed=any(x.overflowed for x in inputs),
            rows=_own_rows(call, inputs),
            free=max((x.free for x in inputs), default=0.0),
        )

    def calls(self, call: Call) -> tuple[Call, ...]:
        """The calls since the last recorded values, and then this one."""
        return (*(done.call for done in self.pending), call)

    def off(self, by: float) -> float:
        """By how much rows may be off that are computed from these inputs, by a call that adds so much."""
        return self.free + by if self.free == np.inf else min(floors.MOST, self.free + by)

    def judged(self, rows: Mask | None) -> tuple[Mask | None, bool]:
        """Which of the recorded rows are judged, None for all; and whether their inputs were not all recorded."""
        if self.rows is None:
            return rows, False
        own = self.rows if rows is None else self.rows & rows
        return (own, False) if own.any() else (rows, True)

    def computed(self, call: Call, value: Array, by: float, scaled: Array | None = None) -> Traced:
        """The value of a call that the candidate did not record; the call may put other rows off `by` so much."""
        free = 0.0 if self.rows is None else self.off(by)
        return Traced(
            value, self.wrong, self.pending, call, self.lost, self.overflowed, scaled, rows=self.rows, free=free
        )


def _own_rows(call: Call, inputs: Sequence[Traced]) -> Mask | None:
    """The rows of a result that are made of nothing but the candidate's own rows; None for all of them."""
    if all(x.rows is None for x in inputs):
        return None
    kind = kind_of(call.point)  # a hypothesis may have put another operation in the place of the usual one
    if call.op is append or kind is Kind.CACHE:
        return np.concatenate([np.ones(len(x), bool) if x.rows is None else x.rows for x in inputs])
    held = call.sources[1] if call.op in (scores, attend) or kind in (Kind.SCORES, Kind.ATTENTION) else None
    if isinstance(held, Traced) and held.rows is not None:
        if not _in_window(call, held.rows):  # each query reads all of them
            return np.zeros(call.inputs[0].shape[0 if call.op is scores or kind is Kind.SCORES else 1], bool)
        inputs = [x for x in inputs if x is not held]
    masks = [x.rows for x in inputs if x.rows is not None]
    if not masks:
        return None
    if isinstance(call.op, NodeOperation) or call.op in MOVES:
        shape = shape_of(call) or call.compute(F32).shape
        tokens = shape[token_axis(axes_of(call.point, len(shape)))]
        mixes = isinstance(call.op, NodeOperation) and call.op.node.op in MIXING
        if mixes or any(len(mask) != tokens for mask in masks):
            return np.zeros(tokens, bool)
    rows: Mask = np.logical_and.reduce(masks)
    return rows


def _in_window(call: Call, rows: Mask) -> bool:
    """Whether a window hides every key, or weighs every value with 0, that is not the candidate's own."""
    mask = call.argument("mask")
    if mask is not None:
        return bool(rows[np.isfinite(mask).any(tuple(range(mask.ndim - 1)))].all())
    p = call.argument("p")
    return p is not None and not p[..., ~rows].any()


MIXING = frozenset(
    ("CONCAT", "SSM_CONV", "SSM_SCAN", "GATED_DELTA_NET", "RWKV_WKV6", "RWKV_WKV7", "GATED_LINEAR_ATTN",
     "FLASH_ATTN_EXT", "GET_ROWS", "SET_ROWS", "CUMSUM")
)  # fmt: skip
"""Operations of a graph whose results at one token read other tokens."""


class Look(Protocol):
    """Takes a closer look at each judged site, while both tensors are at hand."""

    def take(
        self,
        site: Site,
        status: Status,
        candidate: Array,
        reference: Array,
        /,
        *,
        axes: tuple[str, ...],
        seen: Mask | None,
    ) -> None:
        """Look at what was recorded and what was computed, same shape; `seen` are the entries that count."""
