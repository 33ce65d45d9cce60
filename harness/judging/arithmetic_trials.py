"""Trying arithmetics: what each leaves of a candidate's results, on the candidate's own inputs, at every layer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import axes_of
from firstdiff.judging import floors
from firstdiff.judging.arithmetic_attempts import Attempts, Trial
from firstdiff.judging.arithmetic_held import HeldSearch
from firstdiff.judging.arithmetic_options import group_of, option, possible
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.measure import holds_numbers
from firstdiff.judging.needed import Judging
from firstdiff.judging.rows import Mask, hidden, of_rows
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.attention import append, attend, scores, soft_max
from firstdiff.model.moves import MOVES
from firstdiff.model.operations import embed
from firstdiff.model.probe import Call, Change, unchanged
from firstdiff.model.shapes import shape_of
from firstdiff.model.token_rows import rows_of
from firstdiff.model.value import Value

CACHE_STEPS = 2
"""Steps in which the cache is tried: what a step adds to it, and what it finds there."""

TWINS = 8
"""Weights by which two kinds are told apart that hold nearly all numbers alike: all of their rows are decoded."""

TOKENS = 8
"""Rows of the embedding that are tried."""


@dataclass(frozen=True, slots=True, eq=False)
class Own(Value):
    """A value that the candidate recorded.

    `lost` is the relative error that storing it may have caused; `scaled` is a query as the candidate scales it; `rows`
    are those that were recorded, None for all: the others are NaN.
    """

    lost: float
    scaled: Array | None = None
    rows: Mask | None = None


@dataclass
class Trials(Judging):
    """Tries every option at each site of the first step, and of the cache at every site.

    In the other `steps`, at some `layers`, those options are tried first that fit the site in the first step, and the
    rest where none of them does. What goes on is the candidate's own. Sites whose inputs were not recorded are not
    tried; where some rows were, an operation that works row by row is tried on these.
    """

    trace: Trace
    alignment: Alignment
    steps: frozenset[int] = frozenset((0,))
    layers: frozenset[int] = frozenset()
    changed: Change = unchanged
    found: dict[str, list[Trial]] = field(default_factory=dict, init=False)
    held: HeldSearch = field(default_factory=HeldSearch, init=False)
    _pending: dict[str, Call] = field(default_factory=dict, init=False)
    _largest: dict[str, float] = field(default_factory=dict, init=False)
    _told_apart: int = field(default=0, init=False)
    _fitting: dict[tuple[int | None, str], tuple[str, ...]] = field(default_factory=dict, init=False)

    def of_step(self, step: int) -> dict[str, list[Trial]]:
        """The trials of one step, by group; of what overflowed where it was stored only where there are no others."""
        found = {group: [t for t in of if t.site.step == step] for group, of in self.found.items()}
        return {group: [t for t in of if np.isfinite([*t.errors.values()]).any()] or of for group, of in found.items()}

    def silent(self, call: Call) -> Value:
        """Compute what nobody records. Moved numbers of the candidate's are still its own."""
        computed = call.compute(self.arithmetic)
        own = [s for s in call.sources if isinstance(s, Own)]
        if call.op in MOVES and own and all(isinstance(s, Own) for s in call.sources if s is not None):
            return Own(computed, max(s.lost for s in own), rows=next((s.rows for s in own if s.rows is not None), None))
        return Value(computed)

    def value(self, call: Call) -> Value:
        """Try what can be tried of this call, and return the candidate's value, or a computed one."""
        site = Site(call.step, call.layer, call.point)
        whole = self._recorded(call, site, self._shape(call))
        if whole is None:
            with np.errstate(all="ignore"):
                computed = call.compute(self.arithmetic)
            self._pending[call.point] = call if _is_own(call) or call.op is soft_max else replace(call, inputs=())
            return Value(computed)
        call, recorded = _entering(call, whole)
        own = _is_own(call)
        lost = max((s.lost for s in call.sources if isinstance(s, Own)), default=0.0)
        if self._is_tried(call):
            rows = _common(recorded, call)
            if call.op is embed:
                self._try_rows(site, call, whole)
            elif rows is not None:
                calls, values = self._as_scaled((call,), recorded.array)
                cut = rows_of(calls[0], np.flatnonzero(rows)) if own else None
                if cut is not None:
                    self._try(site, (cut,), of_rows(values, rows, axes_of(call.point, values.ndim)), lost)
            elif calls := (call,) if own else self._flash(call):
                self._try(site, *self._as_scaled(calls, recorded.array), lost)
        return whole

    def _is_tried(self, call: Call) -> bool:
        """Whether a call is tried: all are in the first step, of the cache in two; in later ones some layers' are."""
        group = group_of(call)
        if call.op is append or call.step == 0 or group in (None, "embedding"):
            return group is not None and call.step < (CACHE_STEPS if call.op is append else 1)
        return call.step in self.steps and (call.layer is None or call.layer in self.layers)

    def known(self, call: Call) -> Value | None:
        """Return the candidate's value, where any of it was recorded."""
        return self._recorded(call, Site(call.step, call.layer, call.point), shape_of(call))

    def _recorded(self, call: Call, site: Site, shape: tuple[int, ...] | None) -> Own | None:
        """The candidate's value, NaN in rows that were not recorded; None where it was not recorded at all."""
        if shape is None:
            return None
        like = np.broadcast_to(np.float32(np.nan), shape)
        recorded, mask, _ = self.alignment.read_rows(self.trace, site, like, hidden(call))
        if recorded is None:
            return None
        rows = None if mask is None else mask.ravel()
        held = of_rows(recorded, rows, axes_of(call.point, recorded.ndim))
        lost = floors.stored(F32, call, self.alignment.dtype(self.trace, site), held)
        return Own(recorded, lost, self.alignment.scaled_query(self.trace, site, recorded), rows)

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

    def _flash(self, call: Call) -> tuple[Call, ...]:
        """The calls that flash attention makes one of, where it is judged as one; none where it is not."""
        pending, self._pending = self._pending, {}
        kq, p = pending.get("kq"), pending.get("kq_soft_max")
        if call.op is not attend or kq is None or p is None or not kq.inputs or not isinstance(call.sources[1], Own):
            return ()
        if any(isinstance(s, Own) and s.rows is not None for s in (*kq.sources, call.sources[1])):
            return ()
        if {(c.step, c.layer) for c in (kq, p)} != {(call.step, call.layer)}:
            return ()
        return kq, p, call

    def _try_rows(self, site: Site, call: Call, whole: Own) -> None:
        """Try some rows of the embedding, each by itself: they are what is known of how the table is held."""
        tokens = call.argument("tokens")
        held = [(place, token) for place, token in enumerate(tokens) if whole.rows is None or whole.rows[place]]
        places = sorted({int(token): place for place, token in reversed(held)}.values())
        for place in places[:TOKENS]:
            cut = call.with_arguments(tokens=tokens[place : place + 1])
            self._try(site, (cut,), whole.array[place : place + 1], 0.0)

    def _try(self, site: Site, calls: tuple[Call, ...], whole: Array, lost: float) -> None:
        if not holds_numbers(whole):
            return  # what is zero everywhere, or NaN, is so in every arithmetic
        group = group_of(calls[-1])
        assert group is not None
        calls = tuple(map(self.changed, calls))
        own = floors.stored(F32, calls[-1], self.alignment.dtype(self.trace, site), whole)
        weight = calls[-1].argument("weight")
        part = f"{site.point} {weight.kind.name}" if group == "linear" else site.point
        trial = Trial(site, part, {}, {}, {})
        attempts = Attempts(trial, calls, whole, own=own, lost=lost, largest=self._largest)
        options = dict(possible(group, calls, flash=len(calls) > 1))
        fitting = self._fitting.get((site.layer, part), ()) if site.step else ()
        for name in fitting:
            if "+held=" in name or name in options:
                attempts.make(name, option(group, name))
        if not (fitting and trial.fitting):
            for name, arithmetic in options.items():
                attempts.make(name, arithmetic)
            if weight is not None:
                self.held.run(group, weight.shape[-1], attempts.make, trial, narrow=own > 0 or lost > 0)
                self._told_apart += self._told_apart < TWINS and attempts.tell_twins_apart()
            attempts.ask_for_rests()
            self._fitting.setdefault((site.layer, part), trial.fitting)
        self.found.setdefault(group, []).append(trial)


def _is_own(call: Call) -> bool:
    """Whether all that a call computes from was recorded."""
    inputs = [s for s in call.sources if s is not None]
    return all(isinstance(s, Own) for s in inputs) and (bool(inputs) or call.op is embed)


def _entering(call: Call, whole: Own) -> tuple[Call, Own]:
    """What enters the cache, and the candidate's of it, where not all of what it then holds was recorded before."""
    sources = (s is None or (isinstance(s, Own) and s.rows is None) for s in call.sources)
    if call.op is not append or (whole.rows is None and all(sources)):
        return call, whole
    new = -len(call.argument("new"))
    entering = replace(call.with_arguments(past=None), sources=(None, *call.sources[1:]))
    rows = None if whole.rows is None else whole.rows[new:]
    return entering, replace(whole, array=whole.array[new:], rows=rows)


def _common(whole: Own, call: Call) -> Mask | None:
    """The rows that are recorded of a result and of all that it is computed from; None for all."""
    own = [s for s in call.sources if isinstance(s, Own)]
    if call.op in (scores, attend) and own[1:] and own[-1].rows is not None:
        return np.zeros(1, bool)  # each query reads all keys
    masks = [s.rows for s in (whole, *own) if s.rows is not None]
    if any(len(m) != len(masks[0]) for m in masks):
        return np.zeros(1, bool)
    return np.logical_and.reduce(masks) if masks else None
