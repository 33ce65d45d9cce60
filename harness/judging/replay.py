"""Replay: the reference's operations on the candidate's own recorded inputs, each judged where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import POINTS, Kind, axes_of, kind_of
from firstdiff.judging import floors
from firstdiff.judging.arithmetic import Fingerprint, Levels
from firstdiff.judging.case import DOUBTFUL, Case, Done
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.measure import Mask, locate, measure, stands_in_f16, within_f16
from firstdiff.judging.needed import Judging
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import MOVES, visible
from firstdiff.model.probe import Call
from firstdiff.model.shapes import shape_of
from firstdiff.model.terms import terms
from firstdiff.model.value import Value
from firstdiff.verdict import SiteVerdict, Status


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
    """

    wrong: bool
    before: tuple[Done, ...] = ()
    call: Call | None = None
    lost: float = 0.0
    overflowed: bool = False
    scaled: Array | None = None

    @property
    def pending(self) -> tuple[Done, ...]:
        """The calls since the last recorded values."""
        return self.before if self.call is None else (*self.before, Done(self.call, self))


@dataclass(frozen=True, slots=True)
class _Upstream:
    """What is known of all inputs of a call together: see :class:`Traced`."""

    wrong: bool
    pending: tuple[Done, ...]
    lost: float
    overflowed: bool

    @classmethod
    def of(cls, call: Call) -> _Upstream:
        inputs = [x for x in call.sources if isinstance(x, Traced)]
        return cls(
            wrong=any(x.wrong for x in inputs),
            pending=tuple({done.value: done for x in inputs for done in x.pending}.values()),
            lost=max((x.lost for x in inputs), default=0.0),
            overflowed=any(x.overflowed for x in inputs),
        )

    def computed(self, call: Call, value: Array, scaled: Array | None = None) -> Traced:
        """The value of a call that the candidate did not record."""
        return Traced(value, self.wrong, self.pending, call, self.lost, self.overflowed, scaled)


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

    def run(self, call: Call) -> Value:
        """Run a call in the arithmetic of its step."""
        if self.phases is not None:
            found = self.phases.of(len(self.trace.steps[call.step].tokens))
            self.arithmetic, self.levels = found.arithmetic, found.levels
        return super().run(call)

    def silent(self, call: Call) -> Value:
        """Compute what nobody records; it belongs to the segment that it stands in."""
        with np.errstate(all="ignore"):
            return _Upstream.of(call).computed(call, self._computed(call, self.arithmetic))

    def known(self, call: Call) -> Value | None:
        """Return the candidate's value where nothing of what is computed goes into it.

        Whether it is right, or anything upstream, is not asked.
        """
        shape = shape_of(call)
        if shape is None:
            return None
        site = Site(call.step, call.layer, call.point)
        like = np.broadcast_to(np.float32(np.nan), shape)
        recorded, rows, _ = self.alignment.read_rows(self.trace, site, like)
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
            computed = self._computed(call, self.arithmetic)
        upstream = _Upstream.of(call)
        site = Site(call.step, call.layer, call.point)
        recorded, rows, reason = self.alignment.read_rows(self.trace, site, computed)
        if recorded is None:
            status = Status.NOT_COMPARABLE if reason else Status.NOT_RECORDED
            self.sites.append(_named(site, call, status, inputs_right=not upstream.wrong, reason=reason))
            return upstream.computed(call, computed, self.alignment.scaled_query(self.trace, site, computed))
        dtype = self.alignment.dtype(self.trace, site)
        held = recorded if rows is None else recorded[rows[:, 0]]
        own = floors.stored(self.arithmetic, call, dtype, held)
        calls = (*(done.call for done in upstream.pending), call)
        tight = self.floor(calls, own=own, inputs=upstream.lost)
        level = self.levels.floor(calls)
        floor = max(tight, level)
        half = dtype == "f16" and own > 0
        overflows = half and bool(np.isinf(held).any())
        raw = recorded
        if half:
            recorded = within_f16(recorded, computed, floor)
            raw = np.where(np.isinf(raw), recorded, raw)
        seen = counted(call.point, computed) if rows is None else rows
        verdict = self._judge(site, call, recorded, computed, upstream=upstream, floor=floor, seen=seen)
        if level > tight:
            verdict = replace(verdict, tight=tight)
        diverges = verdict.status is Status.DIVERGES
        if diverges and self._is_normed(site, recorded):
            reason = "it holds the value after the final norm, as the last of Hugging Face's hidden_states does"
            self.sites.append(_named(site, call, Status.NOT_COMPARABLE, inputs_right=not upstream.wrong, reason=reason))
            return upstream.computed(call, computed)
        scaled = self.alignment.scaled_query(self.trace, site, recorded)
        if diverges and upstream.overflowed:
            reason = "an input was stored in f16 as infinity: what the engine had there is not known"
            self.sites.append(_named(site, call, Status.NOT_COMPARABLE, inputs_right=not upstream.wrong, reason=reason))
            return Traced(recorded, upstream.wrong, lost=own, overflowed=overflows, scaled=scaled)
        self.sites.append(verdict)
        if self.details is not None:
            axes = axes_of(call.point, computed.ndim)
            self.details.take(verdict.site, verdict.status, recorded, computed, axes=axes, seen=seen)
        if diverges:
            known = raw if rows is None else np.where(rows, raw, np.float32(np.nan))
            case = Case(
                site,
                call,
                known,
                computed,
                verdict.local_error or 0.0,
                floor,
                0.0,
                seen,
                upstream.pending,
                half=half,
                stored=own,
                inputs=upstream.lost,
            )
            self.diverged(self._as_scaled(case))
        return Traced(recorded, upstream.wrong or diverges, lost=own, overflowed=overflows, scaled=scaled)

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
        upstream: _Upstream,
        floor: float,
        seen: Mask | None,
    ) -> SiteVerdict:
        axes = axes_of(call.point, computed.ndim)
        against = partial(measure, recorded, axes=axes, floor=floor, seen=seen, terms=lambda: terms(call))
        difference = against(computed)
        rounding = [done for done in upstream.pending if done.call.op not in MOVES]
        if not rounding and floor < difference.error <= DOUBTFUL * floor:
            # Perhaps it is ours: float32 sums of large terms err as well.
            difference = against(self._computed(call, self.arithmetic.exact))
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
        return _named(
            site,
            call,
            Status.DIVERGES,
            local_error=difference.error,
            floor=floor,
            worst=difference.worst,
            where=locate(recorded, computed, axes=axes, floor=floor, seen=seen),
            not_finite=difference.not_finite,
            inputs_right=not upstream.wrong,
            segment=segment,
        )

    def _computed(self, call: Call, arithmetic: Arithmetic) -> Array:
        """What a call gives; scores of a scaled Q are computed of that, and divided by the scale."""
        query = _scaled_query(call)
        if query is None:
            return call.compute(arithmetic)
        computed = call.with_arguments(q=query).compute(arithmetic)
        return np.asarray(computed / computed.dtype.type(query.shape[-1] ** -0.5))

    def _as_scaled(self, case: Case) -> Case:
        """A case of scores as the candidate computes them: of a scaled Q."""
        query = _scaled_query(case.call)
        if query is None:
            return case
        call = case.call.with_arguments(q=query)
        recorded, computed = (x * x.dtype.type(query.shape[-1] ** -0.5) for x in (case.recorded, case.computed))
        return replace(case, call=call, recorded=recorded, computed=computed)

    def _is_normed(self, site: Site, recorded: Array) -> bool:
        """Whether a layer's output is the candidate's own final norm under another name."""
        if site.point != "l_out":
            return False
        normed, _ = self.alignment.read(self.trace, Site(site.step, None, "result_norm"), recorded)
        return normed is not None and np.array_equal(normed, recorded)

    def diverged(self, case: Case) -> None:
        """Take note of a site that diverges. What is made of it is the business of an explaining replay."""


def _scaled_query(call: Call) -> Array | None:
    """The query of a call of scores as the candidate scales it; None for any other call."""
    source = call.sources[0] if kind_of(call.point) is Kind.SCORES and call.sources else None
    return source.scaled if isinstance(source, Traced) else None


def counted(point: str, computed: Array) -> Mask | None:
    """Which entries of a point count: causally hidden scores do not."""
    return visible(*computed.shape[-2:]) if point in POINTS and POINTS[point].hidden else None


def _named(site: Site, call: Call, status: Status, **rest: Any) -> SiteVerdict:  # noqa: ANN401 - SiteVerdict's fields
    return SiteVerdict(site, call.op.__name__, status, **rest)
