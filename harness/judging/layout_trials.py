"""Trying layouts: what each leaves of a candidate's results, on the candidate's own inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, axes_of, kind_of, token_axis
from firstdiff.judging.layout_fit import BETTER, PLAUSIBLE, error_of
from firstdiff.judging.layout_measured import Measured
from firstdiff.judging.layout_votes import Votes
from firstdiff.judging.layouts import ROTATED, SCORES, Alignment, Layout
from firstdiff.judging.measure import holds_numbers
from firstdiff.judging.needed import Judging
from firstdiff.judging.rows import Rows, partly, placed, usual
from firstdiff.model.arithmetic import Array
from firstdiff.model.attention import append, soft_max
from firstdiff.model.engine import Model
from firstdiff.model.graph.elementwise import geglu
from firstdiff.model.operations import embed, layer_norm, rms_norm, rope, swiglu
from firstdiff.model.outline import outline
from firstdiff.model.probe import Call, Change, unchanged
from firstdiff.model.shapes import shape_of
from firstdiff.model.value import Value

CHEAP = (rms_norm, layer_norm, rope, append, swiglu, geglu, soft_max)
"""Operations that are run on every reading of what they are fed."""


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
    found: Measured = field(init=False)
    direct: set[str] = field(default_factory=set)  # points that were measured by what they are computed from
    _unsure: dict[Value, tuple[str, dict[int, Array]]] = field(default_factory=dict)  # in every layout, as none fits
    _embedded: dict[int, Rows] = field(default_factory=dict)  # where so many rows of the embedding lie

    def __post_init__(self) -> None:
        self.found = Measured(self.model, self.given, self.scaled, Votes(self.model.rotation, self.trace.names))
        looked_up = {site for site in self.trace if kind_of(site.point) is Kind.EMBEDDING}
        if any(len(self.trace.steps[s.step].tokens) not in self.trace.shape(s) for s in looked_up):
            # What follows agrees with itself in any rows: tokens tell before anything is read.
            for value in outline(self.model, self.trace.steps):
                if value.call.op is embed:
                    self.value(value.call)

    def value(self, call: Call) -> Value:
        """Measure each layout that fits, and go on with the one that fits best here."""
        computed = {False: self._computed(call, other=False)}
        if any(isinstance(source, _Own) for source in call.sources) and call.point in ROTATED:
            computed[True] = self._computed(call, other=True)
        computed |= self._follow(call)
        site = Site(call.step, call.layer, call.point)
        best: dict[bool, tuple[float, Array]] = {}
        readings: dict[int, Array] = {}
        for index, layout in enumerate(self.found.layouts(call.point)):
            expected = computed.get(layout.reordered, computed[False])
            read = self._read(site, layout, expected)
            if read is None:
                continue
            self.found.fitting[call.point].append(index)
            readings[index] = read
            error = error_of(call.point, read, expected)
            if error is None:
                best.setdefault(layout.reordered, (np.inf, read))
                continue
            self.found.errors[call.point][index].append(error)
            self.direct.add(call.point)
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
            return (
                Value(right) if turned is None else _Own(turned if self.found.votes.reordered else right, right, turned)
            )
        if len(best) == 1:
            return Value(next(iter(best.values()))[1])
        self.found.votes.hear(call.point, best, computed, partial(error_of, call.point))
        plain, other = best[False], best[True]
        reordered = self.found.votes.reordered if self.found.votes.cast else other[0] < BETTER * plain[0]
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
            reordered = any(self.found.layouts(point)[index].reordered for point, _ in unsure.values())
            with np.errstate(all="ignore"):
                inputs: dict[Value, Array] = {source: readings[index] for source, (_, readings) in unsure.items()}
                expected = call.with_inputs(inputs).compute(self.arithmetic)
            told = self._least(call, expected, reordered=reordered)
            if told is not None:
                for point, _ in unsure.values():
                    self.found.followed[point][index].append(told)
            error = np.inf if told is None else told
            if reordered not in best or error < best[reordered][0]:
                best[reordered] = error, expected
        return {order: expected for order, (_, expected) in best.items()}

    def _least(self, call: Call, expected: Array, *, reordered: bool) -> float | None:
        """What is left of a call's result in the layout that fits best, of those in an order of dimensions.

        None where nothing tells, as where all of it is NaN.
        """
        site = Site(call.step, call.layer, call.point)
        layouts = [x for x in self.found.layouts(call.point) if call.point not in ROTATED or x.reordered is reordered]
        read = (self._read(site, layout, expected) for layout in layouts)
        errors = (error_of(call.point, x, expected) for x in read if x is not None)
        return min((e for e in errors if e is not None), default=None)

    def _ask_probabilities(self, call: Call, expected: Array) -> None:
        """Let probabilities say whether the scores that they are made of are scaled, where nothing else does.

        `expected` is what the call gives on scores that are not. Probabilities that fit both ways say nothing: those of
        scores that are nearly zero.
        """
        (scores,) = SCORES
        fitting = self.found.fitting.get(scores, [])
        if call.op is not soft_max or scores not in self.scaled or scores in self.direct or not fitting:
            return
        plain, site = min(fitting), Site(call.step, call.layer, call.point)
        unscaled = call.argument("kq") * np.float32(self.model.hp.head_dim**0.5)
        with np.errstate(all="ignore"):
            other = call.with_arguments(kq=unscaled).compute(self.arithmetic)
        left: dict[int, float] = {}
        for index, given in ((plain, expected), (plain + len(self.found.layouts(scores)) // 2, other)):
            read = (self._read(site, layout, given) for layout in self.found.layouts(call.point))
            errors = [e for x in read if x is not None and (e := error_of(call.point, x, given)) is not None]
            if errors:
                left[index] = min(errors)
        if max(left.values(), default=0.0) > PLAUSIBLE:
            for index, error in left.items():
                self.found.errors[scores][index].append(error)

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
        told = self.found.rows[site.point, count]
        for which in (usually, *(set(Rows) - {usually})):
            read, _ = placed(part, like, axes, which)
            error = error_of(site.point, read, expected)
            if error is not None and not layout.reordered and layout.unscaled is None:
                told[which].append(error)
            if error is None or not holds_numbers(read):  # zeros behind the tokens are nearer than what is huge
                error = np.inf
            if best is None or error < BETTER * best[0]:
                best = error, read
                if kind_of(site.point) is Kind.EMBEDDING and error <= PLAUSIBLE:
                    self._embedded[count] = which
        return None if best is None else best[1]

    def known(self, call: Call) -> Value | None:
        """Return the recorded value where only one layout fits its shape: any other choice needs the numbers."""
        shape = shape_of(call)
        if shape is None:
            return None
        site = Site(call.step, call.layer, call.point)
        like = np.broadcast_to(np.float32(np.nan), shape)
        read = [self._read(site, layout, like) for layout in self.found.layouts(call.point)]
        fitting = [x for x in read if x is not None]
        return Value(fitting[0]) if len(fitting) == 1 else None
