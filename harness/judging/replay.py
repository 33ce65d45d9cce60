"""Replay: the reference's operations on the candidate's own recorded inputs, each judged where it stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import axes_of, token_axis
from firstdiff.judging import floors
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.case import DOUBTFUL, Case
from firstdiff.judging.layouts import PLAIN, Alignment
from firstdiff.judging.levels import Levels
from firstdiff.judging.measure import locate, measure, overflowing, stands_in_f16, within_f16
from firstdiff.judging.needed import Judging
from firstdiff.judging.partial import Cut
from firstdiff.judging.rows import Mask, along, both, counted, hidden, of_rows
from firstdiff.judging.scaled_scores import as_scaled, computed_as_scaled
from firstdiff.judging.selections import close_calls, picked, selects
from firstdiff.judging.settling import BEHIND, settled
from firstdiff.judging.traced import Look, Traced, Upstream
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.moves import MOVES
from firstdiff.model.probe import Call
from firstdiff.model.shapes import shape_of
from firstdiff.model.terms import terms
from firstdiff.model.value import Value
from firstdiff.verdict import SiteVerdict, Status

NORMED = "it holds the value after the final norm, as the last of Hugging Face's hidden_states does"
NO_PAST = "it reads the cache from before the dump begins, which the dump does not hold"


@dataclass
class Replay(Judging):
    """Judges a candidate's trace site by site, and goes on with the candidate's own values.

    What the candidate did not record is computed, and the judged segment then spans more operations.
    """

    trace: Trace
    alignment: Alignment = field(default_factory=Alignment)
    levels: Levels = field(default_factory=Levels)
    details: Look | None = None  # where a closer look at each site is wanted
    phases: Fingerprint | None = None  # gives arithmetic and levels by step, where they differ
    sites: list[SiteVerdict] = field(default_factory=list, init=False)
    cut: dict[Site, Cut] = field(default_factory=dict, init=False)  # tensors of other rows than the step's tokens
    close: dict[Site, int] = field(default_factory=dict, init=False)  # tokens whose experts may have been others
    _places: dict[Site, tuple[int, int]] = field(default_factory=dict, init=False)  # step, and order in it

    @classmethod
    def of(cls, found: Fingerprint, trace: Trace, alignment: Alignment, **rest: Any) -> Self:  # noqa: ANN401 - its fields
        """A replay in the arithmetic that was found, of each step its own."""
        return cls(found.arithmetic, trace, alignment, found.levels, phases=found, **rest)

    def run(self, call: Call) -> Value:
        """Run a call in the arithmetic of its step."""
        if (found := self._phase(call)) is not None:
            self.arithmetic, self.levels = found.arithmetic, found.levels
        if call.point and call.step >= 0:
            self._places[Site(call.step, call.layer, call.point)] = call.step, call.order
        return super().run(call)

    def foreseen(self, call: Call) -> Arithmetic | None:
        """In which arithmetic a call is judged first."""
        found = self._phase(call)
        return None if call.step < 0 else self.arithmetic if found is None else found.arithmetic

    def _phase(self, call: Call) -> Fingerprint | None:
        """What was found for the step of a call, where steps differ."""
        if self.phases is None or call.step < 0:
            return None
        return self.phases.of(len(self.trace.steps[call.step].tokens))

    def silent(self, call: Call) -> Value:
        """Compute what nobody records; it belongs to the segment that it stands in."""
        with np.errstate(all="ignore"):
            return Upstream.of(call).computed(call, self.computed(call, self.arithmetic), self._off(call))

    def unknown(self, call: Call, shape: tuple[int, ...]) -> Value:
        """Stand in for what was computed before the trace begins."""
        zeros = np.zeros(shape, self.arithmetic.dtype)
        tokens = shape[token_axis(axes_of(call.point, len(shape)))]
        return Traced(zeros, wrong=False, rows=np.zeros(tokens, bool), free=np.inf)

    def known(self, call: Call) -> Value | None:
        """Return the candidate's value where nothing of what is computed goes into it.

        Whether it is right, or anything upstream, is not asked.
        """
        shape = shape_of(call)
        if shape is None:
            return None
        site = Site(call.step, call.layer, call.point)
        like = np.broadcast_to(np.float32(np.nan), shape)
        recorded, rows, _ = self.alignment.read_rows(self.trace, site, like, hidden(call))
        if recorded is None or rows is not None or self._is_normed(site, recorded):
            return None
        dtype = self.alignment.dtype(self.trace, site)
        own = floors.stored(self.arithmetic, call, dtype, recorded)
        if dtype == "f16" and own > 0 and not stands_in_f16(recorded, own):
            return None
        return Traced(recorded, wrong=False, lost=own, scaled=self.alignment.scaled_query(self.trace, site, recorded))

    def value(self, call: Call) -> Value:
        """Compare the computed value with the candidate's at this site, and return the candidate's."""
        with np.errstate(all="ignore"):  # a candidate's NaN and infinities are judged, not warned of
            computed = self.computed(call, self.arithmetic)
        upstream = Upstream.of(call)
        site = Site(call.step, call.layer, call.point)
        recorded, mask, reason = self.alignment.read_rows(self.trace, site, computed, hidden(call))
        if recorded is not None:
            return self._compared(call, upstream, computed, recorded, mask)
        status = Status.NOT_COMPARABLE if reason else Status.NOT_RECORDED
        self.sites.append(_named(site, call, status, inputs_right=not upstream.wrong, reason=reason))
        if upstream.pending and (tokens := close_calls(call, self.floor(upstream.calls(call), own=0, inputs=0))):
            self.close[site] = tokens
        scaled = self.alignment.scaled_query(self.trace, site, computed)
        return upstream.computed(call, computed, self._off(call), scaled)

    def _compared(self, call: Call, upstream: Upstream, computed: Array, raw: Array, mask: Mask | None) -> Value:
        """Judge what was recorded, `raw`, of which `mask` tells the rows; give the value to go on with."""
        site, axes = Site(call.step, call.layer, call.point), axes_of(call.point, computed.ndim)
        rows = None if mask is None else mask.ravel()
        self._note_rows(site, computed, mask)
        judged, leans = upstream.judged(rows)
        held = of_rows(raw, rows, axes)
        dtype = self.alignment.dtype(self.trace, site)
        own = floors.stored(self.arithmetic, call, dtype, held)
        half = dtype == "f16" and own > 0
        calls = upstream.calls(call)
        tight = self.floor(calls, own=own, inputs=upstream.lost) + (upstream.free if leans else 0.0)
        floor = max(tight, self.levels.floor(calls))
        recorded = raw
        if not leans:
            kinds = ("bf16", self.arithmetic.weights_and_results, *(("f16",) if half else ()))
            recorded = overflowing(raw, computed, kinds, floor)
            recorded = within_f16(recorded, computed, floor) if half else recorded
        seen = both(counted(call.point, computed, call), None if judged is None else along(judged, axes))
        verdict = self._judge(site, call, recorded, computed, upstream=upstream, floor=floor, seen=seen)
        if floor > tight:
            verdict = replace(verdict, tight=tight)
        diverges = verdict.status is Status.DIVERGES
        verdict = replace(verdict, leans=leans and diverges)
        unknown = self._not_comparable(site, recorded, upstream, diverges=diverges, leans=leans)
        if unknown is not None:
            verdict = _named(site, call, Status.NOT_COMPARABLE, inputs_right=not upstream.wrong, reason=unknown)
        self.sites.append(verdict)
        if unknown == NORMED:
            return upstream.computed(call, computed, self._off(call))
        if unknown is None and self.details is not None:
            self.details.take(verdict.site, verdict.status, recorded, computed, axes=axes, seen=seen)
        if unknown is None and diverges:
            finite = np.where(np.isinf(raw), recorded, raw)
            known = finite if mask is None else np.where(mask, finite, np.float32(np.nan))
            error = verdict.local_error or 0.0
            case = Case(
                site, call, known, computed, error, floor, 0.0, seen, upstream.pending, half, own, upstream.lost,
                self.arithmetic,
            )  # fmt: skip
            self.diverged(as_scaled(case))
        return Traced(
            recorded,
            upstream.wrong or (unknown is None and diverges),
            lost=own,
            overflowed=half and bool(np.isinf(raw if seen is None else np.where(seen, raw, 0)).any()),
            scaled=self.alignment.scaled_query(self.trace, site, recorded),
            rows=rows,
            free=0.0 if rows is None else upstream.off(self._off(call)),
        )

    def _note_rows(self, site: Site, computed: Array, mask: Mask | None) -> None:
        """Note a tensor that has other rows than its step has tokens."""
        size = math.prod(self.trace.shape(site)) if site in self.trace else 0
        if mask is not None or size != computed.size:
            cut = self.alignment.cut(self.trace, site, computed.shape)
            self.cut |= {} if cut is None else {site: cut}

    def _not_comparable(
        self, site: Site, recorded: Array, upstream: Upstream, *, diverges: bool, leans: bool
    ) -> str | None:
        """Why a site that is recorded cannot be judged; None where it can."""
        if leans and upstream.free == np.inf:
            return NO_PAST
        if not diverges:
            return None
        if self._is_normed(site, recorded):
            return NORMED
        if upstream.overflowed:
            return "an input was stored in f16 as infinity: what the engine had there is not known"
        return BEHIND if leans and upstream.wrong else None

    def settled(self) -> list[SiteVerdict]:
        """The sites in execution order, of which none is accused of what may come from rows that were not recorded."""
        return settled(self.in_order())

    def in_order(self) -> list[SiteVerdict]:
        """The sites in execution order."""
        return sorted(self.sites, key=lambda s: self.place(s.site))

    def place(self, site: Site) -> tuple[int, int]:
        """Where a site stands in the order of execution."""
        return self._places[site]

    def _off(self, call: Call) -> float:
        return floors.off(self.arithmetic, call)

    def floor(self, calls: Sequence[Call], *, own: float, inputs: float) -> float:
        """The floor of a segment, as :func:`firstdiff.judging.floors.floor`."""
        return floors.floor(self.arithmetic, calls, own=own, inputs=inputs)

    def _judge(
        self,
        site: Site,
        call: Call,
        recorded: Array,
        computed: Array,
        *,
        upstream: Upstream,
        floor: float,
        seen: Mask | None,
    ) -> SiteVerdict:
        axes = axes_of(call.point, computed.ndim)
        if selects(call):
            recorded, computed, seen = picked(call, recorded), picked(call, computed), None
        against = partial(measure, recorded, axes=axes, floor=floor, seen=seen, terms=lambda: terms(call))
        difference = against(computed)
        rounding = [done for done in upstream.pending if done.call.op not in MOVES]
        if not rounding and floor < difference.error <= DOUBTFUL * floor:
            # Perhaps it is ours: float32 sums of large terms err as well.
            difference = against(self.computed(call, self.arithmetic.exact))
        spanned = (done.call for done in upstream.pending)
        segment = tuple(Site(of.step, of.layer, of.point) for of in spanned if of.point)
        if difference.error <= floor:
            status = Status.INHERITS if upstream.wrong else Status.AGREES
            return _named(
                site,
                call,
                status,
                local_error=difference.error,
                floor=floor,
                inputs_right=not upstream.wrong,
                segment=segment,
            )
        layout, worst = self.alignment.layouts.get(site.point, PLAIN), difference.worst
        there = None if worst is None else self.alignment.there(self.trace, site, computed.shape, worst.index)
        return _named(
            site,
            call,
            Status.DIVERGES,
            local_error=difference.error,
            floor=floor,
            worst=None if worst is None else replace(worst, there=there),
            where=locate(layout.there(recorded), layout.there(computed), axes=axes, floor=floor, seen=seen),
            not_finite=difference.not_finite,
            inputs_right=not upstream.wrong,
            segment=segment,
        )

    def computed(self, call: Call, arithmetic: Arithmetic) -> Array:
        """What a call gives; scores of a scaled Q are computed of that, and divided by the scale."""
        return computed_as_scaled(call, arithmetic)

    def _is_normed(self, site: Site, recorded: Array) -> bool:
        """Whether a layer's output is the candidate's own final norm under another name."""
        if site.point != "l_out":
            return False
        normed, _ = self.alignment.read(self.trace, Site(site.step, None, "result_norm"), recorded)
        return normed is not None and bool(recorded.any()) and np.array_equal(normed, recorded)

    def diverged(self, case: Case) -> None:
        """Take note of a site that diverges. What is made of it is the business of an explaining replay."""


def _named(site: Site, call: Call, status: Status, **rest: Any) -> SiteVerdict:  # noqa: ANN401 - SiteVerdict's fields
    return SiteVerdict(site, call.op.__name__, status, **rest)
