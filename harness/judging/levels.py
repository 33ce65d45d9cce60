"""Levels: the floors of what is computed in an arithmetic that nobody knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from firstdiff.judging.arithmetic_options import GROUPS, group_of
from firstdiff.model.operations import embed
from firstdiff.model.probe import Call

Segment = tuple[int, tuple[str, ...]]
"""A step, and the points of a segment of it, the judged one last."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The floors of groups whose arithmetic is unknown: by point, and by group for points of too few layers.

    `segments` are those of whole segments that are off alike at all layers.
    """

    points: dict[str, float] = field(default_factory=dict)
    groups: dict[str, float] = field(default_factory=dict)
    segments: dict[Segment, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.groups)

    def floor(self, calls: Sequence[Call]) -> float:
        """What the calls of a segment add to its floor; 0 where their arithmetic is known."""
        whole = self.segments.get((calls[-1].step, tuple(call.point for call in calls if call.point)), 0.0)
        return max(whole, sum(self._of(call) for call in calls))

    def _of(self, call: Call) -> float:
        group = "results" if call.op is embed else group_of(call)
        if group not in self.groups:
            return 0.0
        return self.points.get(_part(call), self.groups[group])


def _part(call: Call) -> str:
    weight = call.argument("weight") if GROUPS.get(call.op) == "linear" else None
    return call.point if weight is None else f"{call.point} {weight.kind.name}"
