"""How small a fault a dump could have shown, where nothing diverges: computed from its own inputs and floors.

An operation is run on the candidate's inputs with one number changed. What that changes the judged tensor by must be
more than the site's floor, and more by the error that the candidate has there anyway, which may hide as much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import axes_of
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.measure import measure
from firstdiff.judging.needed import run
from firstdiff.judging.past import missing_past
from firstdiff.judging.replay import Replay, counted
from firstdiff.judging.rows import Mask, along, both
from firstdiff.judging.traced import Traced, Upstream
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import Operation, embed, linear, rms_norm, rope, soft_max
from firstdiff.model.probe import Call
from firstdiff.model.terms import terms
from firstdiff.model.value import Value
from firstdiff.verdict import Fault, Sensitivity, SiteVerdict, Smallest, Status

LONGEST = 24
"""Unrecorded operations before a judged one up to which a change among them is tried: a layer has some 20."""

ROWS = 64
"""Rows of scores and of what goes into a product that are looked at: more would take a tenth of a verdict's time."""

AIM = 1e-3
"""What a change is made to do, relatively, to be measured: float32 rounds by 1e-4 of it, and smaller changes act in
proportion."""

MOST = 1e6
"""The largest share that is told: nobody has a number wrong by more."""

ATTEMPTS = 8
"""Changes that are tried at one place. A change that acts in proportion takes two."""

RIGHT = (Status.AGREES, Status.INHERITS)


# Faults


@dataclass(frozen=True, slots=True)
class Change:
    """A number of an operation that is made larger.

    Parameters
    ----------
    fault, op
        Which number, and of which operation.
    make
        Gives the operation's result with the number larger by a share: of the call and its right result.
    start
        The share that is tried first.
    everywhere
        Whether every layer is tried; or else the first, the middle and the last.
    """

    fault: Fault
    op: Operation
    make: Callable[[Call, Array, float], Array]
    start: Callable[[Call], float] = lambda _: AIM
    everywhere: bool = False


def _attribute(name: str) -> Callable[[Call, Array, float], Array]:
    def make(call: Call, _right: Array, share: float) -> Array:
        return call.with_arguments(**{name: call.argument(name) * (1 + share)}).compute(F32)

    return make


def _epsilon(call: Call) -> float:
    """What changes the smallest row by some `AIM`: the root of its mean square halves what is added."""
    x, eps = np.asarray(call.argument("x"), np.float64), float(call.argument("eps"))
    return 2 * AIM * (float(np.square(x).mean(-1).min()) + eps) / eps if eps else AIM


def _matrix(call: Call, right: Array, share: float) -> Array:
    return right + share * (right if call.argument("bias") is None else call.with_arguments(bias=None).compute(F32))


def _weight(call: Call, right: Array, share: float) -> Array:
    row, column = element(call)
    weight = call.argument("weight").rows(row, row + 1).astype(np.float64)
    wrong = np.array(right, np.float64)
    flat = wrong.reshape(len(wrong), -1)
    flat[:, row] += share * math.sqrt(np.square(weight).mean()) * call.argument("x")[:, column]
    return wrong


def element(call: Call) -> tuple[int, int]:
    """Row and column of the weight that stands for all of a product's.

    It is of the middle row, and of the column for which half of the others have smaller inputs: relative to their
    token's, at the token where these are largest.
    """
    x = np.asarray(call.argument("x"), np.float64)
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    most = (np.abs(x) / np.where(size > 0, size, 1.0)).max(0)
    return call.argument("weight").shape[0] // 2, int(np.argsort(most, kind="stable")[len(most) // 2])


CHANGES = (
    Change(Fault.NORM_EPSILON, rms_norm, _attribute("eps"), _epsilon, everywhere=True),
    Change(Fault.ROPE_BASE, rope, _attribute("base")),
    Change(Fault.SOFTMAX_SCALE, soft_max, _attribute("scale")),
    Change(Fault.MATRIX, linear, _matrix),
    Change(Fault.WEIGHT, linear, _weight, lambda _: 1.0),
    Change(Fault.EMBEDDING, embed, lambda _, right, share: right + share * right),
)


# Where they are tried


@dataclass(frozen=True, slots=True)
class Place:
    """A number of one operation, and the judged site that shows it."""

    change: Change
    site: Site
    judged: SiteVerdict


def places(change: Change, sites: Sequence[SiteVerdict], cut: Collection[Site] = ()) -> list[Place]:
    """Where a change is tried: at operations that were recorded with their inputs, or else at one that was not.

    Parameters
    ----------
    change
        Which.
    sites
        The sites judged, in execution order.
    cut
        Sites of which only some rows were recorded: what they are computed from may reach back to the first layer.
    """
    right = [s for s in sites if s.status in RIGHT and s.floor is not None and math.isfinite(s.floor)]
    own = [s for s in right if s.op == change.op.__name__]
    direct = [s for s in own if not s.segment and s.site not in cut]
    if direct:
        count = Counter(s.step for s in direct)
        step = min(count, key=lambda step: (-count[step], step))
        return [Place(change, s.site, s) for s in _chosen(change, [s for s in direct if s.step == step])]
    ops = {s.site: s.op for s in sites}
    within = [Place(change, s.site, s) for s in own]
    within += [Place(change, x, s) for s in right for x in s.segment if ops.get(x) == change.op.__name__]
    short = [place for place in within if len(place.judged.segment) <= LONGEST]
    return [min(short, key=lambda place: len(place.judged.segment))] if short else []


def _chosen(change: Change, direct: Sequence[SiteVerdict]) -> Sequence[SiteVerdict]:
    """Those that are tried of one step's: products take long, so that three of one layer stand for all."""
    layers = sorted({s.layer for s in direct if s.layer is not None})
    if change.everywhere or not layers:
        return direct
    if change.op is linear:
        return _spread([s for s in direct if s.layer == layers[len(layers) // 2]])
    kept = _spread(layers)
    return [s for s in direct if s.layer in kept]


def _spread(of: Sequence[Any]) -> list[Any]:
    """The first, the middle and the last."""
    return [of[i] for i in sorted({0, len(of) // 2, len(of) - 1})]


# How small they can be


@dataclass(frozen=True)
class Chain:
    """The calls since the last recorded values, the judged one last, on what the candidate's inputs make of them.

    Nothing is rounded to less than float32: what a change does would drown in it. `values` stand for the results in
    what the calls read, `right` are the results, and `seen` the entries of the last one that count.
    """

    calls: tuple[Call, ...]
    values: tuple[Value, ...]
    right: tuple[Array, ...]
    seen: Mask | None

    @classmethod
    def of(cls, call: Call, seen: Mask | None, rows: Mask | None) -> Chain:
        """The chain of a judged call; of many rows the last ones, where that is all it takes to compute them."""
        pending = Upstream.of(call).pending
        operand = {linear: "x", soft_max: "kq"}.get(call.op)
        if not pending and rows is None and operand is not None:
            x = call.argument(operand)
            call = call.with_arguments(**{operand: x[-ROWS:] if call.op is linear else x[:, -ROWS:]})
            seen = None if seen is None else seen[-ROWS:]
        values = (*(done.value for done in pending), Value(np.empty(0)))
        calls: list[Call] = []
        right: dict[Value, Array] = {}
        for each, value in zip((*(done.call for done in pending), call), values, strict=True):
            calls.append(each.with_inputs(right))
            right[value] = calls[-1].compute(F32)
        return cls(tuple(calls), values, tuple(right.values()), seen)

    @cached_property
    def sizes(self) -> Array | None:
        """The sizes of the terms that the judged result is a sum of."""
        return terms(self.calls[-1])

    def error(self, number: int, wrong: Array) -> float:
        """The local error of the judged call where the call of a number gives something else."""
        new = {self.values[number]: wrong}
        for value, call in zip(self.values[number + 1 :], self.calls[number + 1 :], strict=True):
            fed = call.with_inputs(new)
            if fed is not call:
                new[value] = fed.compute(F32)
        right = self.right[-1]
        axes = axes_of(self.calls[-1].point, right.ndim)
        given = new.get(self.values[-1], right)
        return measure(given, right, axes=axes, floor=0.0, seen=self.seen, terms=lambda: self.sizes).error

    def smallest(self, place: Place) -> float:
        """The smallest share at a place that is seen for certain; infinite where none is."""
        number = next(n for n, call in enumerate(self.calls) if _site(call) == place.site)
        floor, own = place.judged.floor or 0.0, place.judged.local_error or 0.0
        share, needed = place.change.start(self.calls[number]), floor + own
        aim, error = max(needed, AIM), 0.0
        for _ in range(ATTEMPTS):
            error = self.error(number, place.change.make(self.calls[number], self.right[number], share))
            if not 0 < error < math.inf:
                return math.inf
            if aim / 2 <= error <= 2 * aim:
                break
            share *= aim / error
        found = share * needed / error
        return found if found <= MOST else math.inf


def _site(call: Call) -> Site:
    return Site(call.step, call.layer, call.point)


@dataclass(kw_only=True)
class Sensing(Replay):
    """Tries changes at their places, while the values that these need are at hand."""

    wanted: Mapping[Site, Sequence[Place]]
    found: dict[Fault, list[Smallest]] = field(default_factory=dict, init=False)

    def value(self, call: Call) -> Value:
        """Judge the call, and try the changes that it shows."""
        given = super().value(call)
        site = _site(call)
        if site in self.wanted and isinstance(given, Traced):
            rows, _ = Upstream.of(call).judged(given.rows)
            mask = None if rows is None else along(rows, axes_of(call.point, given.array.ndim))
            chain = Chain.of(call, both(counted(call.point, given.array), mask), rows)
            for place in self.wanted[site]:
                self._take(place, chain)
        return given

    def _take(self, place: Place, chain: Chain) -> None:
        share = chain.smallest(place)
        of = next(c for c in chain.calls if _site(c) == place.site)
        at = element(of) if place.change.fault is Fault.WEIGHT else None
        smallest = Smallest(place.site, share, place.judged.site, at)
        self.found.setdefault(place.change.fault, []).append(smallest)


@np.errstate(all="ignore")
def sensitivity(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    sites: Sequence[SiteVerdict],
    cut: Collection[Site] = (),
) -> tuple[Sensitivity, ...]:
    """Say of each kind of fault how small it could be and still diverge, at one place of this dump.

    Parameters
    ----------
    model, trace, found, alignment
        As the trace was judged with: `found` is its arithmetic.
    sites
        The sites judged.
    cut
        Sites of which only some rows were recorded.

    Returns
    -------
    One for each kind of fault that the model's operations can have.
    """
    ops = {s.op for s in sites}
    of = {c.fault: places(c, sites, cut) for c in CHANGES if c.op.__name__ in ops}
    wanted: dict[Site, list[Place]] = {}
    for place in (p for tried in of.values() for p in tried):
        wanted.setdefault(place.judged.site, []).append(place)
    probe = Sensing(found.arithmetic, trace, alignment, found.levels, phases=found, wanted=wanted)
    if wanted:
        steps = trace.steps[: max(site.step for site in wanted) + 1]
        run(model, steps, probe, wanted.__contains__, past=missing_past(model, trace))
    return tuple(_told(fault, probe.found.get(fault, ())) for fault in of)


def _told(fault: Fault, tried: Iterable[Smallest]) -> Sensitivity:
    ranked = sorted(tried, key=lambda s: s.share)
    if not ranked:
        return Sensitivity(fault, None, None, 0)
    return Sensitivity(fault, ranked[0], ranked[-1] if len(ranked) > 1 else None, len(ranked))
