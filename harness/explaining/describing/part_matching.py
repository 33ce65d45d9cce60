"""A part of a candidate's tensor found again in another recorded one, at the same place: what a loop left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.describing.compared import HUGE, Compared, Floats, Mask, left
from firstdiff.explaining.describing.finding import Subject, by_head, joined, reach, within
from firstdiff.explaining.describing.regularity import named
from firstdiff.judging.measure import LOCATED

EQUAL = 0.02
"""The most that equality may leave of a token's part, however high the floor: layers of one model differ by more."""

NEARER = 10.0
"""How many times nearer than the reference's own part another tensor's must be to be the candidate's."""

LEAST = 8
"""Fewest numbers by which a part is recognised."""

SHOWN = 64  # indices in a finding's values


@dataclass(frozen=True, slots=True)
class PartMatch:
    """Where some slices of a candidate's tensor, the wrong ones, were found: `words` say which, `name` where."""

    name: str
    words: Subject
    indices: dict[str, list[int]]
    share: float

    @property
    def says(self) -> str:
        """In words: ``heads 3-8 are those of kqv_out-1, the rest right``."""
        return f"{self.words.are} {'those' if self.words.many else 'that'} of {self.name}, the rest right"

    @property
    def values(self) -> dict[str, Any]:
        """For JSON."""
        return {"of": self.name} | self.indices


@dataclass(frozen=True, slots=True, eq=False)
class WrongPart:
    """The slices of a candidate's tensor that are wrong, by axis; the rest is right.

    `x` has heads as an axis of their own where its features are made of heads and whole heads are wrong.
    """

    x: Compared
    reached: dict[int, Mask]
    entries: Mask


def wrong_part(x: Compared) -> WrongPart | None:
    """The part that is wrong; None where whole tokens are, or too few numbers to be recognised by."""
    x = by_head(x)
    delta = np.abs(x.candidate - x.reference) / x.rms
    reached = reach((delta > LOCATED * x.floor) & x.counts, x.counts)
    if not set(reached) - {x.token_axis}:
        return None
    entries = within(x.counts, reached)
    values = x.candidate[entries]
    told = len(values) >= LEAST and np.ptp(values) > LOCATED * x.floor * np.abs(values).max()
    return WrongPart(x, reached, entries) if told else None


def part_match(part: WrongPart, name: str, other: npt.NDArray[Any]) -> PartMatch | None:
    """Whether the wrong part is another tensor's, which has the same shape, heads side by side or not."""
    x = part.x
    if other.size != x.reference.size or len(other) != x.reference.shape[0]:
        return None
    wide = np.asarray(other, np.float64).reshape(x.reference.shape)
    wide = np.where(part.entries & (np.abs(wide) < HUGE), wide, 0.0)
    own = np.where(part.entries, x.candidate, 0.0)
    if not (x.norms(own - wide) <= _allowed(part, own)).all():
        return None
    rest = left(x, np.where(part.entries, wide, x.reference))
    if not rest.holds:
        return None
    words, indices = [], {}
    for i, here in part.reached.items():
        chosen = np.flatnonzero(here)
        words.append(Subject(named(x.axes[i], chosen, len(here)), len(chosen) > 1, i == x.token_axis))
        indices[x.axes[i]] = [int(j) for j in chosen[:SHOWN]]
    return PartMatch(name, joined(words), indices, rest.share)


def _allowed(part: WrongPart, own: Floats) -> Floats:
    """The distance of each token's part [token] up to which it is another's."""
    x = part.x
    off = x.norms(np.where(part.entries, x.candidate - x.reference, 0.0))
    allowed: Floats = np.minimum(min(x.floor, EQUAL) * x.norms(own), off / NEARER)
    return allowed
