"""Sums of the residual stream that a dump does not hold: a branch, the stream before it, or a normed value instead.

A sum is followed by a norm and by the next sum. Where these were computed from the right sum, and not from what is
recorded in its place, the engine is right and the dump is not. Where they were computed from what is recorded, the
engine went on with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.judging.measure import relative
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import add, embed, rms_norm
from firstdiff.model.outline import Awaited, outline, sources
from firstdiff.model.value import Value
from firstdiff.preflight.rows import recorded_rows
from firstdiff.verdict import DumpFinding
from firstdiff.verdict.ranges import extent

FITS = 0.1
"""The largest error of a norm or a sum on its own inputs, in the coarsest arithmetic and dtype: 0.05 in fp8. Where
what is held cannot be told, it is wrong only if what follows is further from it."""

ALIKE = 0.01  # relative difference of two tensors that are one, each rounded to bf16 in its own way

CLEARLY = 5.0  # times worse, at least, is what does not fit


@dataclass(frozen=True, slots=True, eq=False)
class _Sum:
    """One sum of the residual stream as a dump holds it: what is recorded there, the branch, the stream before it."""

    value: Awaited
    recorded: Array
    given: Awaited | None
    trace: Trace
    stream: Array
    earlier: Array | None  # the sum before that

    @property
    def site(self) -> Site:
        call = self.value.call
        return Site(call.step, call.layer, call.point)

    @property
    def branch(self) -> Array | None:
        return None if self.given is None else recorded_rows(self.trace, self.given)

    @property
    def totals(self) -> Iterator[Array]:
        """What the sum may be: of the branch as it is recorded, or of what stands in the place of the sum."""
        branch = self.branch
        if branch is not None:
            yield branch + self.stream
        yield self.recorded + self.stream


def wrong_sums(model: Model, trace: Trace) -> Iterator[DumpFinding]:
    """Find sums of the residual stream in whose place something else is recorded, which nothing went on with."""
    if not any(kind_of(site.point) is Kind.SUM for site in trace):
        return
    held = dict(_held(outline(model, trace.steps), trace))
    kinds: dict[str, list[Site]] = defaultdict(list)
    for point in dict.fromkeys(site.point for site in held):
        of = {site: kind for site, kind in held.items() if site.point == point}
        known = {"normed" if kind == "hidden_states" else kind for kind in of.values() if kind is not None}
        for site, kind in of.items():
            # What nothing recorded follows is as the others are, where these are all alike.
            told = kind if kind is not None or len(known) != 1 else next(iter(known))
            if told in TOLD:
                kinds[told].append(site)
    for kind, sites in kinds.items():
        where = extent(sites, model.hp.n_layer, len(trace.steps))
        id_, says, fix = TOLD[kind]
        yield DumpFinding(
            id_, f"{where}: your dump holds {says}, and what follows was computed from the sum", fix, tuple(sites)
        )


RIGHT = "sum"

TOLD = {
    "branch": (
        "branch-as-sum",
        "the branch instead of its sum with the residual stream",
        "dump the sum after the addition; of a layer that returns (hidden, residual), dump hidden + residual",
    ),
    "stream": (
        "earlier-sum",
        "an earlier sum of the residual stream",
        "dump the sum after the addition: Hugging Face's hidden_states[i] is the input of layer i, and not its output",
    ),
    "normed": (
        "norm-as-sum",
        "the sum after the next norm",
        "copy the sum before the norm is applied, which may be done in place",
    ),
    "other": (
        "other-than-sum",
        "other numbers than the sum",
        "copy the sum when it is computed, before its buffer is used again",
    ),
}
"""For each kind of what is held instead of a sum: the finding's id, what it says, and what to do."""


def _held(values: Sequence[Awaited], trace: Trace) -> Iterator[tuple[Site, str | None]]:
    """Every recorded sum, and the kind of what is held there; None where nothing that follows tells."""
    following: dict[Awaited, list[Awaited]] = defaultdict(list)
    for value in values:
        for source in sources(value.call):
            following[source].append(value)
    streams: dict[Awaited, Array] = {}  # the last one, as the engine went on with it
    earlier: Array | None = None
    for value in values:
        recorded = recorded_rows(trace, value) if value.call.op in (add, embed) else None
        if value.call.op is embed:
            streams[value] = value.call.compute(F32) if recorded is None else recorded
            earlier = None
        if value.call.op is not add or kind_of(value.call.point) is not Kind.SUM:
            continue
        branch, stream = (s if isinstance(s, Awaited) else None for s in value.call.sources)
        before = None if stream is None else streams.pop(stream, None)
        if recorded is None:
            given = None if branch is None else recorded_rows(trace, branch)
            if before is not None and given is not None:
                streams[value] = given + before
            earlier = before
            continue
        streams[value] = recorded
        if before is not None:
            of = _Sum(value, recorded, branch, trace, before, earlier)
            kind, total = _judged(of, following[value], trace)
            streams[value] = recorded if total is None else total
            yield of.site, kind
        earlier = before


def _judged(of: _Sum, following: Sequence[Awaited], trace: Trace) -> tuple[str | None, Array | None]:
    """The kind of what is held at a sum, and the sum where it is something else."""
    kind, used = None, None
    for value in following:
        if value.call.op not in (add, rms_norm):  # products take time, and know other layouts
            continue
        out = recorded_rows(trace, value)
        given = None if out is None else _error(of, of.recorded, value, out, trace)
        if out is None or given is None:
            continue
        if given <= 2 * ALIKE:
            return RIGHT, None
        errors = [(e, total) for total in of.totals if (e := _error(of, total, value, out, trace)) is not None]
        error, total = min(errors, key=lambda pair: pair[0], default=(np.inf, None))
        if error <= FITS and CLEARLY * error <= given:
            kind = _kind(of, following, trace)
            if kind != "other" or given > FITS:
                used = total
                continue
        if given <= FITS:
            return RIGHT, None
    return None if used is None else kind, used


def _error(of: _Sum, x: Array, value: Awaited, out: Array, trace: Trace) -> float | None:
    """How far a recorded value is from what its call gives where the sum is `x`; None where no row of both is known."""
    arrays: dict[Value, Array] = {of.value: x}
    for source in sources(value.call):
        if source is not of.value:
            other = recorded_rows(trace, source)
            if other is None:
                return None
            arrays[source] = other
    made = value.call.with_inputs(arrays).compute(F32)
    known = (np.isfinite(made) & np.isfinite(out)).all(-1)
    return relative(out[known], made[known]) if known.any() else None


def _kind(of: _Sum, following: Sequence[Awaited], trace: Trace) -> str:
    """What is held in the place of a sum."""
    normed = [recorded_rows(trace, value) for value in following if value.call.op is rms_norm]
    if any(x is not None and _alike(of.recorded, x) for x in normed):
        outside = any(value.call.layer is None for value in following)
        return "hidden_states" if outside else "normed"  # the last of Hugging Face's: the replay says so
    branch = of.branch
    if branch is None or _alike(of.recorded, branch):
        return "branch"
    before = (x for x in (of.stream, of.earlier) if x is not None)
    return "stream" if any(_alike(of.recorded, x) for x in before) else "other"


def _alike(x: Array, y: Array) -> bool:
    known = np.isfinite(x) & np.isfinite(y)
    return bool(known.any()) and relative(x[known], y[known]) <= ALIKE
