"""Attempts at one site: what is left of the candidate's values there under one arithmetic after another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from firstdiff.dumps import Site
from firstdiff.dumps.points import axes_of
from firstdiff.judging import floors
from firstdiff.judging.arithmetic_options import option
from firstdiff.judging.measure import measure
from firstdiff.judging.systematic import rest
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import attend, scores, visible
from firstdiff.model.holding import ELEMENTS, holding, twin
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.model.rounding import round_to
from firstdiff.model.weights import WITH_MINIMA

ROWS = 96
"""Rows of a weight that are tried: an error is told from another one by far fewer results than a product has."""

QUERIES = 64
"""Queries that are tried: as many as send ggml's flash attention onto its tiles."""

MOSTLY = 0.99
"""The share of numbers that are of the type they were stored in; the others are infinite."""

SCALED_BACK = 2.0**-22
"""How far a number of a narrow type is from itself, after it was scaled and scaled back in float32."""


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
    biases
        By option that says what weights are held in: what a bias is then held in, where there is one.
    """

    site: Site
    part: str
    errors: dict[str, float]
    floors: dict[str, float]
    rests: dict[str, float]
    biases: dict[str, str | None] = field(default_factory=dict)

    @property
    def fitting(self) -> tuple[str, ...]:
        """The options at their floor."""
        return tuple(name for name, error in self.errors.items() if error <= self.floors[name])


@dataclass
class Attempts:
    """The calls of one site, run in one arithmetic after another.

    Parameters
    ----------
    trial
        Takes what is found.
    calls, whole
        The calls, and the candidate's result of the last one.
    own, lost
        What storing took from that result, and from the inputs.
    largest
        The largest number of weights, by name, where it is known already.
    """

    trial: Trial
    calls: tuple[Call, ...]
    whole: Array
    own: float
    lost: float
    largest: dict[str, float]
    computed: dict[str, Array] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.cut, self.sample, self.seen = _sampled(self.calls, self.whole)
        self.axes = axes_of(self.trial.site.point, self.sample.ndim)

    def make(self, name: str, arithmetic: Arithmetic) -> None:
        """Run the calls in an arithmetic, unless that has been done, or the values cannot have been stored so."""
        if name in self.trial.errors:
            return
        if (kind := arithmetic.weights_and_results) is not None and not _stored(self.sample, kind):
            return
        calls = self._measured(arithmetic)
        for each in _with_biases(arithmetic, calls[-1]):
            with np.errstate(all="ignore"):
                computed = _chained(calls, each)
                error = measure(self.sample, computed, axes=self.axes, floor=np.inf, seen=self.seen).error
            if self._overflows(computed):
                error = np.inf
            if not error > self.trial.errors.get(name, np.inf):
                self.computed[name], self.trial.errors[name] = computed, error
                if calls[-1].argument("bias") is not None and each.matrices is not None:
                    self.trial.biases[name] = each.norms
        self.trial.floors[name] = floors.floor(arithmetic, self.cut, own=self.own, inputs=self.lost)

    def _overflows(self, computed: Array) -> bool:
        """Whether the arithmetic gives no number where the candidate has one."""
        odd = np.isfinite(self.sample) & ~np.isfinite(computed)
        return bool((odd if self.seen is None else odd & self.seen).any())

    def ask_for_rests(self) -> None:
        """Ask what a fault leaves of the error, of options that come near to the best one."""
        near = NEAR * min(self.trial.errors.values())
        for name, error in self.trial.errors.items():
            if self.trial.floors[name] < error <= near:
                self.trial.rests[name] = rest(self.sample, self.computed[name], self.calls[-1])

    def tell_twins_apart(self) -> bool:
        """Try twins of one kind on the rows of a weight that they hold differently: most rows tell nothing.

        They are measured among others: results of a row by itself may cancel, and err by more than a floor. Returns
        whether there were any.
        """
        call, differ = self.calls[-1], False
        for name in self.trial.fitting if call.op is linear else ():
            base, _, kind = name.partition("+held=")
            other = twin(kind)
            if other is None or f"{base}+held={other}" not in self.trial.errors:
                continue
            weight, bias = call.argument("weight").measured(), call.argument("bias")
            held = {f"{base}+held={k}": weight.held_in(k) for k in (kind, other)}
            mine, its = (each.values() for each in held.values())
            unlike = np.flatnonzero((mine != its).any(1))[:ROWS]
            differ = differ or len(unlike) > 0
            rows = np.union1d(unlike, np.arange(min(ROWS, len(mine)))) if len(unlike) else unlike
            recorded = self.whole.reshape(len(self.whole), -1)[:, rows]
            for each, of in held.items() if len(rows) else ():
                biases = None if bias is None else bias.pick(rows)
                cut = call.with_arguments(weight=of.pick(rows), bias=biases, heads=None)
                computed = (cut.compute(a) for a in _with_biases(option("linear", each), cut))
                errors = (measure(recorded, x, axes=("token", "feature"), floor=np.inf).error for x in computed)
                self.trial.errors[each] = max(self.trial.errors[each], min(errors))
        return differ

    def _measured(self, arithmetic: Arithmetic) -> tuple[Call, ...]:
        """The calls with what some ways of holding a weight must know of all of it: its largest number."""
        kind = arithmetic.matrices  # an option says the same of all
        whole = self.calls[-1].argument("weight")
        if whole is None or kind is None or not holding(kind).of_tensors:
            return self.cut
        if whole.name not in self.largest:
            self.largest[whole.name] = whole.measured().largest
        cut = replace(self.cut[-1].argument("weight"), largest=self.largest[whole.name])
        return (*self.cut[:-1], self.cut[-1].with_arguments(weight=cut))


def _with_biases(arithmetic: Arithmetic, call: Call) -> list[Arithmetic]:
    """An arithmetic with all that biases may be held in, where the matrix is held in another type: norms tell which."""
    if arithmetic.matrices is None or call.argument("bias") is None:
        return [arithmetic]
    return [replace(arithmetic, norms=kind) for kind in (*ELEMENTS, None)]


def _stored(x: Array, kind: str) -> bool:
    """Whether numbers are of a type: what an engine stores in it is, but for the rounding of a scale since."""
    with np.errstate(all="ignore"):
        stored = round_to(x, kind)
        return bool(np.mean((stored == x) | (np.abs(stored - x) <= SCALED_BACK * np.abs(x))) > MOSTLY)


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
            dense=None if weight.kind.name in WITH_MINIMA else weight.rows(0, rows),  # decoded once for all options
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
