"""Trying layouts: what each leaves of a candidate's results, on the candidate's own inputs."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from statistics import median_low

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, axes_of, carrying, kind_of, of_kind, token_axis
from firstdiff.judging.layout_fit import BETTER, PLAUSIBLE, choice, error_of
from firstdiff.judging.layout_options import candidates
from firstdiff.judging.layout_votes import Votes
from firstdiff.judging.layouts import QUERIES, ROTATED, SCORES, Alignment, Layout, is_scaled, scaled_layout
from firstdiff.judging.needed import Judging
from firstdiff.judging.rows import Rows, partly, placed, usual
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import append, embed, rms_norm, rope, soft_max, swiglu
from firstdiff.model.outline import outline
from firstdiff.model.probe import Call, Change, unchanged
from firstdiff.model.shapes import shape_of
from firstdiff.model.value import Value

CHEAP = (rms_norm, rope, append, swiglu, soft_max)
"""Operations that are run on every reading of what they are fed."""

KEYS = tuple(point for point in carrying("K") if point in of_kind(Kind.NORM, Kind.ROTATION, Kind.CACHE))
"""What scores have for keys, and its norm: a factor on both Q and K is no scale folded into Q."""


@dataclass(frozen=True, slots=True, eq=False)
class _Own(Value):
    """A recorded value of Q or K, read in both orders of dimensions; `array` is the one that is gone on with."""

    plain: Array
    other: Array


@dataclass
class Trial(Judging):
    """Measures every layout of every point on the candidate's own inputs; rows that were not recorded are NaN.

    Where there are several rows, and fewer than tokens, they are taken for the `few`, unless the embedding tells.
    """

    trace: Trace
    model: Model
    given: Alignment
    scaled: tuple[str, ...]  # points that may be
    changed: Change = unchanged
    few: Rows = Rows.LAST
    errors: dict[str, dict[int, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    rows: dict[tuple[str, int], dict[Rows, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    fitting: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # by shape, also without numbers
    measured: set[str] = field(default_factory=set)  # by what they are computed from themselves
    followed: dict[str, dict[int, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    _unsure: dict[Value, tuple[str, dict[int, Array]]] = field(default_factory=dict)  # in every layout, as none fits
    _known: dict[str, tuple[Layout, ...]] = field(default_factory=dict)
    _embedded: dict[int, Rows] = field(default_factory=dict)  # where so many rows of the embedding lie

    def __post_init__(self) -> None:
        self.votes = Votes(self.model.rotation, self.trace.names)
        looked_up = {site for site in self.trace if kind_of(site.point) is Kind.EMBEDDING}
        if any(len(self.trace.steps[s.step].tokens) not in self.trace.shape(s) for s in looked_up):
            # What follows agrees with itself in any rows: tokens tell before anything is read.
            for value in outline(self.model, self.trace.steps):
                if value.call.op is embed:
                    self.value(value.call)

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

    def value(self, call: Call) -> Value:
        """Measure each layout that fits, and go on with the one that fits best here."""
        computed = {False: self._computed(call, other=False)}
        if any(isinstance(source, _Own) for source in call.sources) and call.point in ROTATED:
            computed[True] = self._computed(call, other=True)
        computed |= self._follow(call)
        site = Site(call.step, call.layer, call.point)
        best: dict[bool, tuple[float, Array]] = {}
        readings: dict[int, Array] = {}
        for index, layout in enumerate(self.layouts(call.point)):
            expected = computed.get(layout.reordered, computed[False])
            read = self._read(site, layout, expected)
            if read is None:
                continue
            self.fitting[call.point].append(index)
            readings[index] = read
            error = error_of(call.point, read, expected)
            if error is None:
                best.setdefault(layout.reordered, (np.inf, read))
                continue
            self.errors[call.point][index].append(error)
            self.measured.add(call.point)
            if layout.reordered not in best or error < BETTER * best[layout.reordered][0]:
                best[layout.reordered] = error, read
        self._ask_probabilities(call, computed[False])
        value = self._settled(call, best, computed)
        if len(readings) > 1 and min(error for error, _ in best.values()) > PLAUSIBLE:
            self._unsure[value] = call.point, readings
        return value

    def _settled(self, call: Call, best: dict[bool, tuple[float, Array]], computed: dict[bool, Array]) -> Value:
        """The value to go on with, of those that fit best in each order of dimensions."""
        if not best:
            right, turned = computed[False], computed.get(True)
            return Value(right) if turned is None else _Own(turned if self.votes.reordered else right, right, turned)
        if len(best) == 1:
            return Value(next(iter(best.values()))[1])
        self.votes.hear(call.point, best, computed, partial(error_of, call.point))
        plain, other = best[False], best[True]
        reordered = self.votes.reordered if self.votes.cast else other[0] < BETTER * plain[0]
        return _Own(other[1] if reordered else plain[1], plain[1], other[1])

    def _follow(self, call: Call) -> dict[bool, Array]:
        """What a call gives in each order on the reading of its inputs that suits its result best.

        That is asked where no layout of an input fits: what comes of it tells how it lies, whatever is wrong with it.
        """
        unsure = {source: self._unsure[source] for source in call.sources if source in self._unsure}
        if not unsure or call.op not in CHEAP:
            return {}
        best: dict[bool, tuple[float, Array]] = {}
        for index in sorted(set.intersection(*(set(readings) for _, readings in unsure.values()))):
            reordered = any(self.layouts(point)[index].reordered for point, _ in unsure.values())
            with np.errstate(all="ignore"):
                inputs: dict[Value, Array] = {source: readings[index] for source, (_, readings) in unsure.items()}
                expected = call.with_inputs(inputs).compute(self.arithmetic)
            told = self._least(call, expected, reordered=reordered)
            if told is not None:
                for point, _ in unsure.values():
                    self.followed[point][index].append(told)
            error = np.inf if told is None else told
            if reordered not in best or error < best[reordered][0]:
                best[reordered] = error, expected
        return {order: expected for order, (_, expected) in best.items()}

    def _least(self, call: Call, expected: Array, *, reordered: bool) -> float | None:
        """What is left of a call's result in the layout that fits best, of those in an order of dimensions.

        None where nothing tells, as where all of it is NaN.
        """
        site = Site(call.step, call.layer, call.point)
        layouts = [x for x in self.layouts(call.point) if call.point not in ROTATED or x.reordered is reordered]
        read = (self._read(site, layout, expected) for layout in layouts)
        errors = (error_of(call.point, x, expected) for x in read if x is not None)
        return min((e for e in errors if e is not None), default=None)

    def _ask_probabilities(self, call: Call, expected: Array) -> None:
        """Let probabilities say whether the scores that they are made of are scaled, where nothing else does.

        `expected` is what the call gives on scores that are not. Probabilities that fit both ways say nothing: those of
        scores that are nearly zero.
        """
        (scores,) = SCORES
        fitting = self.fitting.get(scores, [])
        if call.op is not soft_max or scores not in self.scaled or scores in self.measured or not fitting:
            return
        plain, site = min(fitting), Site(call.step, call.layer, call.point)
        unscaled = call.argument("kq") * np.float32(self.model.hp.head_dim**0.5)
        with np.errstate(all="ignore"):
            other = call.with_arguments(kq=unscaled).compute(self.arithmetic)
        left: dict[int, float] = {}
        for index, given in ((plain, expected), (plain + len(self.layouts(scores)) // 2, other)):
            read = (self._read(site, layout, given) for layout in self.layouts(call.point))
            errors = [e for x in read if x is not None and (e := error_of(call.point, x, given)) is not None]
            if errors:
                left[index] = min(errors)
        if max(left.values(), default=0.0) > PLAUSIBLE:
            for index, error in left.items():
                self.errors[scores][index].append(error)

    def _computed(self, call: Call, *, other: bool) -> Array:
        """What the call gives on inputs read in the reference's order of dimensions, or in the other one."""
        if call.point in ROTATED:
            own: dict[Value, Array] = {s: s.other if other else s.plain for s in call.sources if isinstance(s, _Own)}
            call = call.with_inputs(own)
        with np.errstate(all="ignore"):
            return self.changed(call).compute(self.arithmetic)

    def _read(self, site: Site, layout: Layout, expected: Array) -> Array | None:
        """The recorded tensor as the layout has it, NaN in rows that are not recorded; None where it does not fit."""
        source = Site(site.step, site.layer, layout.source or site.point)
        if source not in self.trace:
            return None
        x = self.trace[source]
        whole = layout.read(x, expected.shape)
        if whole is not None:
            return whole
        axes = axes_of(site.point, expected.ndim)
        found = partly(x, layout.read, expected.shape, axes, layout.width)
        if found is None:
            return None
        (part, count), tokens = found, expected.shape[token_axis(axes)]
        like = np.full(expected.shape, np.nan, np.float32)
        so_far = sum(len(step.tokens) for step in self.trace.steps[: site.step + 1])
        usually = self._embedded.get(count)
        if usually is None:  # numbers tell
            usually = self.few if 1 < count < tokens else usual(count, tokens, so_far, fixed=False)
        best: tuple[float, Array] | None = None
        told = self.rows[site.point, count]
        for which in (usually, *(set(Rows) - {usually})):
            read, _ = placed(part, like, axes, which)
            error = error_of(site.point, read, expected)
            if error is not None and not layout.reordered and layout.unscaled is None:
                told[which].append(error)
            blank = not np.any(read, where=np.isfinite(read))  # zeros behind the tokens are nearer than what is huge
            error = np.inf if error is None or blank else error
            if best is None or error < BETTER * best[0]:
                best = error, read
                if kind_of(site.point) is Kind.EMBEDDING and error <= PLAUSIBLE:
                    self._embedded[count] = which
        return None if best is None else best[1]

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
            for index, error in middle.items():
                layout = self.layouts(point)[index]
                if layout.source is not None:
                    votes[layout.source][layout.parts] += error <= PLAUSIBLE
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

    def known(self, call: Call) -> Value | None:
        """Return the recorded value where only one layout fits its shape: any other choice needs the numbers."""
        shape = shape_of(call)
        if shape is None:
            return None
        site = Site(call.step, call.layer, call.point)
        like = np.broadcast_to(np.float32(np.nan), shape)
        read = [self._read(site, layout, like) for layout in self.layouts(call.point)]
        fitting = [x for x in read if x is not None]
        return Value(fitting[0]) if len(fitting) == 1 else None
