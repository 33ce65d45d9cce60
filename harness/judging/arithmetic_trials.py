"""Trying arithmetics: what each leaves of a candidate's results, on the candidate's own inputs, at every layer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import axes_of
from firstdiff.judging import floors
from firstdiff.judging.arithmetic_held import HeldSearch
from firstdiff.judging.arithmetic_options import group_of, option, possible
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.measure import measure
from firstdiff.judging.needed import Judging
from firstdiff.judging.systematic import rest
from firstdiff.model.arithmetic import F32, Arithmetic, Array
from firstdiff.model.holding import holding, twin
from firstdiff.model.operations import (
    MOVES,
    append,
    attend,
    embed,
    linear,
    scores,
    soft_max,
    visible,
)
from firstdiff.model.probe import Call
from firstdiff.model.rounding import round_to
from firstdiff.model.shapes import shape_of
from firstdiff.model.value import Value
from firstdiff.model.weights import Weight

ROWS = 96
"""Rows of a weight that are tried: an error is told from another one by far fewer results than a product has."""

CACHE_STEPS = 2
"""Steps in which the cache is tried: what a step adds to it, and what it finds there."""

TWINS = 8
"""Weights by which two kinds are told apart that hold nearly all numbers alike: all of their rows are decoded."""

TOKENS = 8
"""Rows of the embedding that are tried."""

QUERIES = 64
"""Queries that are tried: as many as send ggml's flash attention onto its tiles."""

MOSTLY = 0.99
"""The share of numbers that are of the type they were stored in; the others are infinite, or scaled since."""


NEAR = 4.0
"""What a fault leaves of an error is asked of options within this factor of the best."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One site under every option of its group.

    Parameters
    ----------
    site, part
        Which site; its point, with the type of its weight.
    errors, floors
        By option: the largest relative error of a token, and what a correct engine of that arithmetic stays below.
    rests
        By option: what a fault leaves of the error, see :func:`rest`; of options that come near to the best one.
    """

    site: Site
    part: str
    errors: dict[str, float]
    floors: dict[str, float]
    rests: dict[str, float]

    @property
    def fitting(self) -> tuple[str, ...]:
        """The options at their floor."""
        return tuple(name for name, error in self.errors.items() if error <= self.floors[name])


@dataclass(frozen=True, slots=True, eq=False)
class Own(Value):
    """A value that the candidate recorded.

    `lost` is the relative error that storing it may have caused; `scaled` is a query as the candidate scales it.
    """

    lost: float
    scaled: Array | None = None


@dataclass
class Trials(Judging):
    """Tries every option at each site of the first step, and of the cache at every site.

    In the other `steps`, at some `layers`, those options are tried first that fit the site in the first step, and the
    rest where none of them does. What goes on is the candidate's own. Sites whose inputs were not recorded are not tried.
    """

    trace: Trace
    alignment: Alignment
    steps: frozenset[int] = frozenset((0,))
    layers: frozenset[int] = frozenset()
    found: dict[str, list[Trial]] = field(default_factory=dict, init=False)
    held: HeldSearch = field(default_factory=HeldSearch, init=False)
    _pending: dict[str, Call] = field(default_factory=dict, init=False)
    _largest: dict[str, float] = field(default_factory=dict, init=False)
    _told_apart: int = field(default=0, init=False)
    _fitting: dict[tuple[int | None, str], tuple[str, ...]] = field(default_factory=dict, init=False)

    def of_step(self, step: int) -> dict[str, list[Trial]]:
        """The trials of one step, by group."""
        return {group: [t for t in found if t.site.step == step] for group, found in self.found.items()}

    def silent(self, call: Call) -> Value:
        """Compute what nobody records. Moved numbers of the candidate's are still its own."""
        computed = call.compute(self.arithmetic)
        own = [s for s in call.sources if isinstance(s, Own)]
        if call.op in MOVES and own and all(isinstance(s, Own) for s in call.sources if s is not None):
            return Own(computed, max(s.lost for s in own))
        return Value(computed)

    def value(self, call: Call) -> Value:
        """Try what can be tried of this call, and return the candidate's value, or a computed one."""
        site = Site(call.step, call.layer, call.point)
        whole = self._recorded(site, self._shape(call))
        inputs = [s for s in call.sources if s is not None]
        own = all(isinstance(s, Own) for s in inputs) and (bool(inputs) or call.op is embed)
        if whole is None:
            with np.errstate(all="ignore"):
                computed = call.compute(self.arithmetic)
            self._pending[call.point] = call if own or call.op is soft_max else replace(call, inputs=())
            recorded, _ = self.alignment.read(self.trace, site, computed)  # the last token's row, say
            return Value(computed if recorded is None else recorded)
        lost = max((s.lost for s in inputs if isinstance(s, Own)), default=0.0)
        if self._is_tried(call):
            if call.op is embed:
                self._try_rows(site, call, whole)
            elif calls := (call,) if own else self._flash(call):
                self._try(site, *self._as_scaled(calls, whole), lost)
        return self._own(call, site, whole)

    def _is_tried(self, call: Call) -> bool:
        """Whether a call is tried: in the first step all are, and those on the cache in two; in later ones some layers'."""
        group = group_of(call)
        if call.op is append or call.step == 0 or group in (None, "embedding"):
            return group is not None and call.step < (CACHE_STEPS if call.op is append else 1)
        return call.step in self.steps and (call.layer is None or call.layer in self.layers)

    def known(self, call: Call) -> Value | None:
        """Return the candidate's value, where all of it was recorded."""
        site = Site(call.step, call.layer, call.point)
        whole = self._recorded(site, shape_of(call))
        return None if whole is None else self._own(call, site, whole)

    def _own(self, call: Call, site: Site, whole: Array) -> Own:
        dtype = self.alignment.dtype(self.trace, site)
        scaled = self.alignment.scaled_query(self.trace, site, whole)
        return Own(whole, floors.stored(F32, call, dtype, whole), scaled)

    def _as_scaled(self, calls: tuple[Call, ...], whole: Array) -> tuple[tuple[Call, ...], Array]:
        """Scores, and the call, as the candidate computes them: of a scaled Q, which is what it rounds."""
        call = calls[-1]
        source = call.sources[0] if call.op is scores else None
        query = source.scaled if isinstance(source, Own) else None
        if query is None:
            return calls, whole
        scaled = np.asarray(whole * whole.dtype.type(query.shape[-1] ** -0.5))
        return (call.with_arguments(q=query),), scaled

    def _shape(self, call: Call) -> tuple[int, ...] | None:
        """Shape of a call's result; an operation that nobody has written down is run for it."""
        shape = shape_of(call)
        if shape is None:
            with np.errstate(all="ignore"):
                shape = call.compute(self.arithmetic).shape
        return shape

    def _recorded(self, site: Site, shape: tuple[int, ...] | None) -> Array | None:
        """The candidate's value, where all of it was recorded."""
        if shape is None:
            return None
        like = np.broadcast_to(np.float32(np.nan), shape)
        recorded, _ = self.alignment.read(self.trace, site, like)
        held = Site(site.step, site.layer, self._source(site.point))
        if recorded is None or self.trace[held].size < recorded.size:
            return None
        return recorded

    def _source(self, point: str) -> str:
        layout = self.alignment.layouts.get(point)
        return point if layout is None or layout.source is None else layout.source

    def _flash(self, call: Call) -> tuple[Call, ...]:
        """The calls that flash attention makes one of, where it is judged as one; none where it is not."""
        pending, self._pending = self._pending, {}
        kq, p = pending.get("kq"), pending.get("kq_soft_max")
        if call.op is not attend or kq is None or p is None or not kq.inputs or not isinstance(call.sources[1], Own):
            return ()
        if {(c.step, c.layer) for c in (kq, p)} != {(call.step, call.layer)}:
            return ()
        return kq, p, call

    def _try_rows(self, site: Site, call: Call, whole: Array) -> None:
        """Try some rows of the embedding, each by itself: they are what is known of how the table is held."""
        tokens = call.argument("tokens")
        places = sorted({int(token): place for place, token in reversed(list(enumerate(tokens)))}.values())
        for place in places[:TOKENS]:
            cut = call.with_arguments(tokens=tokens[place : place + 1])
            self._try(site, (cut,), whole[place : place + 1], 0.0)

    def _try(self, site: Site, calls: tuple[Call, ...], whole: Array, lost: float) -> None:
        group = group_of(calls[-1])
        assert group is not None
        own = floors.stored(F32, calls[-1], self.alignment.dtype(self.trace, site), whole)
        weight = calls[-1].argument("weight")
        full = calls[-1]
        calls, sample, seen = _sampled(calls, whole)
        axes = axes_of(site.point, sample.ndim)
        part = f"{site.point} {weight.kind.name}" if group == "linear" else site.point
        trial = Trial(site, part, {}, {}, {})
        computed: dict[str, Array] = {}

        def attempt(name: str, arithmetic: Arithmetic) -> None:
            if (kind := arithmetic.weights_and_results) is not None and not _stored(sample, kind):
                return
            with np.errstate(all="ignore"):
                computed[name] = _chained(self._measured(calls, weight, arithmetic), arithmetic)
                trial.errors[name] = measure(sample, computed[name], axes=axes, floor=np.inf, seen=seen).error
            trial.floors[name] = floors.floor(arithmetic, calls, own=own, inputs=lost)

        fitting = self._fitting.get((site.layer, part), ()) if site.step else ()
        options = dict(possible(group, calls, flash=len(calls) > 1))
        for name in fitting:
            if "+held=" in name or name in options:
                attempt(name, option(group, name))
        if fitting and trial.fitting:
            self.found.setdefault(group, []).append(trial)
            return
        for name, arithmetic in options.items():
            if name not in trial.errors:
                attempt(name, arithmetic)
        if weight is not None:
            self.held.run(group, part, weight.shape[-1], attempt, trial, narrow=own > 0 or lost > 0)
            self._tell_twins_apart(trial, full, whole)
        near = NEAR * min(trial.errors.values())
        for name, error in trial.errors.items():
            if trial.floors[name] < error <= near:
                trial.rests[name] = rest(sample, computed[name], calls[-1])
        self.found.setdefault(group, []).append(trial)
        self._fitting.setdefault((site.layer, part), trial.fitting)

    def _tell_twins_apart(self, trial: Trial, call: Call, whole: Array) -> None:
        """Try twins of one kind on the rows of a weight that they hold differently: most rows tell nothing."""
        for name in trial.fitting:
            base, _, kind = name.partition("+held=")
            other = twin(kind)
            if call.op is not linear or other is None or self._told_apart >= TWINS:
                continue
            weight = call.argument("weight").measured()
            names = {k: f"{base}+held={k}" for k in (kind, other)}
            held = {k: weight.held_in(k) for k in names}
            rows = np.flatnonzero((held[kind].values() != held[other].values()).any(1))[:ROWS]
            for k, each in names.items() if len(rows) else ():
                bias = call.argument("bias")
                cut = call.with_arguments(
                    weight=held[k].pick(rows), bias=None if bias is None else bias.pick(rows), heads=None
                )
                computed = cut.compute(option("linear", each))
                error = measure(whole.reshape(len(whole), -1)[:, rows], computed, axes=("token", "feature"), floor=np.inf)
                trial.errors[each] = max(trial.errors.get(each, 0.0), error.error)
            self._told_apart += len(rows) > 0

    def _measured(self, calls: tuple[Call, ...], whole: Weight | None, arithmetic: Arithmetic) -> tuple[Call, ...]:
        """The calls with what some way of holding a weight must know of all of it: its largest number."""
        kind = arithmetic.matrices  # an option says the same of all
        if whole is None or kind is None or not holding(kind).of_tensors:
            return calls
        if whole.name not in self._largest:
            self._largest[whole.name] = whole.measured().largest
        cut = replace(calls[-1].argument("weight"), largest=self._largest[whole.name])
        return (*calls[:-1], calls[-1].with_arguments(weight=cut))


def _stored(x: Array, kind: str) -> bool:
    """Whether numbers are of a type: what an engine stores in it is."""
    return bool(np.mean(round_to(x, kind) == x) > MOSTLY)


def _sampled(calls: tuple[Call, ...], whole: Array) -> tuple[tuple[Call, ...], Array, Any]:
    """The calls cut down to some rows of a weight, or some queries, and the candidate's values of these."""
    call = calls[0]
    if call.op is linear:
        weight, bias = call.argument("weight"), call.argument("bias")
        rows = min(ROWS, weight.shape[0])
        part = replace(
            weight,
            shape=(rows, weight.shape[-1]),
            raw=weight.raw_rows(0, rows),
            dense=None if weight.dense is None else weight.dense[:rows],
        )
        if bias is not None:
            values = bias.values()[:rows]
            bias = replace(bias, shape=(rows,), dense=values)
        cut = call.with_arguments(weight=part, bias=bias, heads=None)
        return (cut,), np.ascontiguousarray(whole.reshape(len(whole), -1)[:, :rows]), None
    if call.op is scores:
        q = call.argument("q")[-QUERIES:]
        cut = call.with_arguments(q=q)
        if len(calls) > 1:
            return (cut, *calls[1:]), whole[-QUERIES:], None
        return (cut,), whole[:, -QUERIES:], visible(len(q), len(call.argument("keys")))
    if call.op is attend:
        return (call.with_arguments(p=call.argument("p")[:, -QUERIES:]),), whole[-QUERIES:], None
    return calls, whole, None


def _chained(calls: tuple[Call, ...], arithmetic: Arithmetic) -> Array:
    """The result of calls that feed each other: one, or attention's three."""
    x = calls[0].compute(arithmetic)
    for call in calls[1:]:
        x = replace(call, inputs=(x, *call.inputs[1:])).compute(arithmetic)
    return x
