"""How small a fault a dump could have shown, where nothing diverges: computed from its own inputs and floors.

An operation is run on the candidate's inputs with one number changed. What that changes the judged tensor by must be
more than the site's floor, and more by the error that the candidate has there anyway, which may hide as much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from firstdiff.model.arithmetic import F32, GGML, Arithmetic, Array
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

ATTEMPTS = 12
"""Changes that are tried at one place. A change that acts in proportion takes two."""

NEAR = 1.05
"""How near a change has to come that does not act in proportion any more, as a factor."""

BISECTIONS = 4
"""They find a share to a fifth of itself."""

RIGHT = (Status.AGREES, Status.INHERITS)


# Faults


Make = Callable[[Call, Array, float, Arithmetic], Array]


@dataclass(frozen=True, slots=True)
class Change:
    """A number of an operation that is made larger.

    Parameters
    ----------
    fault, op
        Which number, and of which operation.
    make
        Gives the operation's result with the number larger by a share: of the call, its right result and the arithmetic.
    start
        The share that is tried first.
    layers
        How many layers are tried, evenly spread.
    """

    fault: Fault
    op: Operation
    make: Make
    start: Callable[[Call], float] = lambda _: AIM
    layers: int = 3


def _attribute(name: str) -> Make:
    def make(call: Call, _right: Array, share: float, arithmetic: Arithmetic) -> Array:
        return call.with_arguments(**{name: call.argument(name) * (1 + share)}).compute(arithmetic)

    return make


def _epsilon(call: Call) -> float:
    """What changes the smallest row by some `AIM`: the root of its mean square halves what is added."""
    x, eps = np.asarray(call.argument("x"), np.float64), float(call.argument("eps"))
    return 2 * AIM * (float(np.square(x).mean(-1).min()) + eps) / eps if eps else AIM


def _all(_call: Call, right: Array, share: float, _arithmetic: Arithmetic) -> Array:
    return right + share * right


def _matrix(call: Call, right: Array, share: float, arithmetic: Arithmetic) -> Array:
    weight = call.argument("weight")
    if arithmetic.products is not None:
        larger = replace(weight, dense=(weight.values() * (1 + share)).astype(np.float32))
        return call.with_arguments(weight=larger).compute(arithmetic)
    return right + share * (right if call.argument("bias") is None else call.with_arguments(bias=None).compute(F32))


def _weight(call: Call, right: Array, share: float, arithmetic: Arithmetic) -> Array:
    row, column = element(call)
    weights = call.argument("weight").rows(row, row + 1).astype(np.float64)[0]
    pair = np.array([weights[column], weights[column] + share * math.sqrt(np.square(weights).mean())])
    right_one, wrong_one = arithmetic.operand(pair) if arithmetic.products is not None else pair
    wrong = np.array(right, np.float64)
    flat = wrong.reshape(len(wrong), -1)
    flat[:, row] += (wrong_one - right_one) * call.argument("x")[:, column]
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
    Change(Fault.NORM_EPSILON, rms_norm, _attribute("eps"), _epsilon, layers=8),  # epsilons show where activations are small,
    Change(Fault.ROPE_BASE, rope, _attribute("base")),
    Change(Fault.SOFTMAX_SCALE, soft_max, _attribute("scale")),
    Change(Fault.MATRIX, linear, _matrix),
    Change(Fault.WEIGHT, linear, _weight, lambda _: 1.0),
    Change(Fault.EMBEDDING, embed, _all),
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
    direct = _of_one_step([s for s in own if not s.segment and s.site not in cut])
    inside = [s for s in direct if s.layer is not None]
    outside = [Place(change, s.site, s) for s in direct if s.layer is None]
    if inside:
        chosen = [Place(change, s.site, s) for s in _chosen(change, inside)]
        return chosen if change.op is linear else chosen + outside  # that of the logits takes as long as many others
    ops = {s.site: s.op for s in sites}
    within = [Place(change, s.site, s) for s in own]
    within += [Place(change, x, s) for s in right for x in s.segment if ops.get(x) == change.op.__name__]
    near = sorted((p for p in within if len(p.judged.segment) <= LONGEST), key=lambda p: len(p.judged.segment))
    first = next((p for p in near if p.site.layer is not None), None)
    if first is None:
        return outside or near[:1]
    return [first] if change.op is linear else [first, *outside]


def _of_one_step(sites: Sequence[SiteVerdict]) -> list[SiteVerdict]:
    """Those of the step that has most of them, the prompt's if all have as many."""
    count = Counter(s.step for s in sites)
    step = min(count, key=lambda step: (-count[step], step), default=0)
    return [s for s in sites if s.step == step]


def _chosen(change: Change, inside: Sequence[SiteVerdict]) -> list[SiteVerdict]:
    """Those that are tried; products take long, so that three of one layer stand for all."""
    layers = sorted({s.layer for s in inside if s.layer is not None})
    if change.op is linear:
        return _spread([s for s in inside if s.layer == layers[len(layers) // 2]], 3)
    kept = _spread(layers, change.layers)
    return [s for s in inside if s.layer in kept]


def _spread(of: Sequence[Any], count: int) -> list[Any]:
    """So many of a sequence, the first and the last among them."""
    last = len(of) - 1
    return [of[i] for i in sorted({round(last * i / (count - 1)) for i in range(count)})]


# How small they can be


@dataclass(frozen=True)
class Chain:
    """The calls since the last recorded values, the judged one last, on what the candidate's inputs make of them.

    Nothing is rounded to less than float32: what a change does would drown in it. `values` stand for the results in
    what the calls read, `right` are the results, and `seen` the entries of the last one that count. `steps` is the
    arithmetic in which a number is rounded before it is used, if it is, so that what it changes grows in steps.
    """

    calls: tuple[Call, ...]
    values: tuple[Value, ...]
    right: tuple[Array, ...]
    seen: Mask | None
    steps: Arithmetic | None = None

    @classmethod
    def of(cls, call: Call, seen: Mask | None, rows: Mask | None, arithmetic: Arithmetic) -> Chain:
        """The chain of a judged call; of many rows the last ones, where that is all it takes to compute them."""
        pending = Upstream.of(call).pending
        operand = {linear: "x", soft_max: "kq"}.get(call.op)
        if not pending and rows is None and operand is not None:
            x = call.argument(operand)
            call = call.with_arguments(**{operand: x[-ROWS:] if call.op is linear else x[:, -ROWS:]})
            seen = None if seen is None else seen[-ROWS:]
        steps = None if pending else _steps(call, arithmetic)
        values = (*(done.value for done in pending), Value(np.empty(0)))
        calls: list[Call] = []
        right: dict[Value, Array] = {}
        for each, value in zip((*(done.call for done in pending), call), values, strict=True):
            calls.append(each.with_inputs(right))
            right[value] = calls[-1].compute(steps or F32)
        return cls(tuple(calls), values, tuple(right.values()), seen, steps)

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
        call, right = self.calls[number], self.right[number]

        def error(share: float) -> float:
            return self.error(number, place.change.make(call, right, share, self.steps or F32))

        needed = (place.judged.floor or 0.0) + (place.judged.local_error or 0.0)
        found = _in_proportion(error, place.change.start(call), needed)
        if self.steps is not None and found < math.inf:
            found = _stepwise(lambda share: error(share) > needed, found)
        return found if found <= MOST else math.inf


def _steps(call: Call, arithmetic: Arithmetic) -> Arithmetic | None:
    """The arithmetic that rounds numbers of a call before they are used; None for one that uses them as they are.

    ggml's angles are powers of a float32; where both operands of a product are rounded, so is each weight.
    """
    if arithmetic.ggml_products:
        return replace(F32, products=GGML) if call.op is rope else None
    kind = "f16" if arithmetic.products == "f16-sums" else arithmetic.products or arithmetic.weights_and_results
    return replace(F32, products=kind) if call.op is linear and kind is not None else None


def _in_proportion(error: Callable[[float], float], share: float, needed: float) -> float:
    """The share that makes an error, by one that makes an error large enough to be measured; `share` is tried first."""
    aim = max(needed, AIM)
    near = 2.0 if aim > needed else NEAR
    for _ in range(ATTEMPTS):
        made = error(share)
        if not 0 < made < math.inf:
            return math.inf
        if aim / near <= made <= near * aim:
            return share * needed / made
        share *= aim / made
    return math.inf


def _stepwise(seen: Callable[[float], bool], near: float) -> float:
    """The smallest share that is seen, near to a first guess, where numbers act in steps."""
    above = near
    while not seen(above):
        above *= 2
        if above > MOST:
            return math.inf
    below = above / 2 if above > near else near / 16
    for _ in range(BISECTIONS if above == near else 2):
        middle = math.sqrt(below * above)
        below, above = (below, middle) if seen(middle) else (middle, above)
    return above


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
            chain = Chain.of(call, both(counted(call.point, given.array), mask), rows, self.arithmetic)
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
