"""What trials of layouts have measured, and which layouts are taken for it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from statistics import median_low

import numpy as np

from firstdiff.dumps.points import Kind, carrying, of_kind
from firstdiff.judging.layout_fit import BETTER, PLAUSIBLE, choice
from firstdiff.judging.layout_options import candidates
from firstdiff.judging.layout_votes import Votes
from firstdiff.judging.layouts import QUERIES, ROTATED, SCORES, Alignment, Layout, is_scaled, scaled_layout
from firstdiff.judging.rows import Rows
from firstdiff.model.engine import Model

KEYS = tuple(point for point in carrying("K") if point in of_kind(Kind.NORM, Kind.ROTATION, Kind.CACHE))
"""What scores have for keys, and its norm: a factor on both Q and K is no scale folded into Q."""


@dataclass
class Measured:
    """What is left of the candidate's results in each layout of each point.

    Parameters
    ----------
    model, given, scaled
        The model, the layouts that the manifest states, and the points whose values may be scaled.
    votes
        What results say of the order of head dimensions.
    errors, followed
        By point and layout: what is left of the results, and of those that are computed from them.
    rows
        By point and number of recorded rows: what is left where these are a step's first rows, or its last.
    fitting
        By point: the layouts whose shape fits, also without numbers.
    """

    model: Model
    given: Alignment
    scaled: tuple[str, ...]
    votes: Votes
    errors: dict[str, dict[int, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    followed: dict[str, dict[int, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    rows: dict[tuple[str, int], dict[Rows, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    fitting: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _known: dict[str, tuple[Layout, ...]] = field(default_factory=dict)

    def layouts(self, point: str) -> tuple[Layout, ...]:
        """The layouts that are tried for a point: of a given one that is scaled, the unscaled one too."""
        if point not in self._known:
            given = self.given.layouts.get(point)
            layouts = tuple(candidates(point, self.model)) if given is None else (given,)
            if point in self.scaled:
                layouts += tuple(scaled_layout(layout, self.model.hp.head_dim) for layout in layouts)
            elif given is not None and given.unscaled is not None:
                layouts += (given.unscaled,)
            self._known[point] = layouts
        return self._known[point]

    def chosen(self) -> dict[str, Layout]:
        """The layout of each point that is not laid out plainly."""
        chosen, left = {}, {point: self._left(point) for point in self.fitting}
        parts = self._parts(left)
        for point, middle in left.items():
            layouts = self.layouts(point)
            alike = {i: e for i, e in middle.items() if layouts[i].parts == parts.get(layouts[i].source, "")}
            best = choice(alike or middle)
            if best:
                chosen[point] = layouts[best]
        return chosen

    def _left(self, point: str) -> dict[int, float]:
        """What each layout of a point leaves, of those in the order of dimensions that the heads are in."""
        layouts = self.layouts(point)
        middle = {i: median_low(of) for i, of in self.errors.get(point, {}).items()}
        middle = middle or dict.fromkeys(sorted(set(self.fitting[point])), np.inf)
        if min(middle.values()) > PLAUSIBLE:
            for which in (median_low, min):  # what follows may be wrong too, but at one layer
                follows = {i: which(of) for i, of in self.followed.get(point, {}).items()}
                if min(follows.values(), default=np.inf) <= PLAUSIBLE:
                    middle = follows
                    break
        settled = point in ROTATED and point not in self.given.layouts
        ordered = {i: e for i, e in middle.items() if not settled or layouts[i].reordered is self.votes.reordered}
        return ordered or middle

    def _parts(self, left: dict[str, dict[int, float]]) -> dict[str | None, str]:
        """How the parts of each fused product lie: as most of its points say."""
        votes: dict[str, Counter[str]] = defaultdict(Counter)
        for point, middle in left.items():
            least = min(middle.values())
            for index, error in middle.items():
                layout = self.layouts(point)[index]
                if layout.source is not None:
                    votes[layout.source][layout.parts] += error <= PLAUSIBLE and BETTER * error <= least
        return {source: of.most_common(1)[0][0] for source, of in votes.items()}

    def placed_rows(self) -> dict[tuple[str, int], Rows]:
        """Where rows lie, by point and number of rows, where numbers speak clearly; and for any point under "".

        Only an operation whose result is known for all rows tells: what works row by row agrees with itself anywhere.
        """
        found: dict[tuple[str, int], Rows] = {}
        told: dict[int, Counter[Rows]] = defaultdict(Counter)
        for (point, count), errors in self.rows.items():
            if len(errors) == len(Rows) and all(errors.values()):
                error, which = min((median_low(of), which) for which, of in errors.items())
                if error <= min(PLAUSIBLE, BETTER * max(map(median_low, errors.values()))):
                    found[point, count] = which
                    told[count][which] += 1
        return found | {("", count): votes.most_common(1)[0][0] for count, votes in told.items()}

    def turned(self) -> bool:
        """Whether rotations are by the positions of the rows' own tokens, or no rows lack."""
        if not any(count > 1 and len(errors) == len(Rows) for (_, count), errors in self.rows.items()):
            return True
        errors = [of for point in of_kind(Kind.ROTATION) if (of := self.errors.get(point))]
        return not errors or any(min(median_low(e) for e in of.values()) <= PLAUSIBLE for of in errors)

    def agree(self, chosen: dict[str, Layout]) -> bool:
        """Whether what follows a scaled Q is scaled as well, and K is right: a factor on both is no scale."""
        points = [p for p in (*QUERIES, *SCORES) if p in self.errors]
        scaled = [is_scaled(chosen.get(p)) for p in points]
        if not any(s for p, s in zip(points, scaled, strict=True) if p in QUERIES):
            return True
        keys = [self.errors[p] for p in KEYS if p in self.errors]
        right = all(min(median_low(e) for e in errors.values()) <= PLAUSIBLE for errors in keys)
        return right and scaled == sorted(scaled)
