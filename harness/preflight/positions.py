"""Positions: each step's against the length of the cache, which is where it must go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from firstdiff.model.engine import StepLike


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A step whose positions do not follow on what is cached.

    Parameters
    ----------
    step, token
        The step, and the first of its tokens at a wrong position.
    position, expected
        That token's position, and the number of tokens before it.
    cached
        Tokens cached before the step.
    says
        What is wrong with the step, in one phrase.
    """

    step: int
    token: int
    position: int
    expected: int
    cached: int
    says: str


@dataclass(frozen=True, slots=True)
class PositionCheck:
    """Every step whose positions are wrong."""

    steps: int
    misplaced: tuple[Misplaced, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether every step goes on where the one before ended."""
        return not self.misplaced

    @property
    def sentence(self) -> str:
        """What a report says: ``agrees``, or the first wrong step."""
        if not self.misplaced:
            return "agrees"
        first, others = self.misplaced[0], len(self.misplaced) - 1
        token = f" (token {first.token} of the step)" if first.token else ""
        cached = (
            f"{first.expected:,} token{'s' if first.expected != 1 else ''} {'are' if first.expected != 1 else 'is'}"
        )
        more = f"; so {'are' if others > 1 else 'is'} {others} later step{'s' if others > 1 else ''}" if others else ""
        return f"step {first.step} has position {first.position} where {cached} cached{token}: {first.says}{more}"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"agrees": self.agrees, "says": self.sentence, "misplaced": [asdict(m) for m in self.misplaced]}


def check_positions(steps: Sequence[StepLike], past: int = 0) -> PositionCheck:
    """Compare the positions of each step with the number of tokens before it, `past` of them before all steps."""
    misplaced, cached = [], past
    for index, step in enumerate(steps):
        positions = [int(p) for p in step.positions]
        wrong = next((i for i, p in enumerate(positions) if p != cached + i), None)
        if wrong is not None:
            says = _says(positions, cached)
            misplaced.append(Misplaced(index, wrong, positions[wrong], cached + wrong, cached, says))
        cached += len(positions)
    return PositionCheck(len(steps), tuple(misplaced))


def _says(positions: list[int], cached: int) -> str:
    """Name what is wrong with a step's positions."""
    jumps = [b - a for a, b in pairwise(positions)]
    offset = positions[0] - cached
    if any(jump != 1 for jump in jumps):
        if not any(jumps):
            return f"all of its tokens are at position {positions[0]}"
        at = next(i for i, jump in enumerate(jumps) if jump != 1)
        a, b = positions[at], positions[at + 1]
        kind = "a gap" if b > a else "a repetition" if a == b else "a step back"
        return f"{kind} within the step, from {a} to {b}"
    if positions[0] == 0:
        return "restarted at 0"
    if abs(offset) == 1:
        return f"off by one, {'ahead' if offset > 0 else 'behind'}"
    return f"{abs(offset):,} {'ahead (a gap)' if offset > 0 else 'behind'}"
