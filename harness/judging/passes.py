"""Passes over the weights that several traces make together, with all steps of each.

The weight of a product is read once for all of them, and that of an expert once for all tokens that chose it.

A pass is run layer by layer, and in a layer each step of each trace is a lane of its own: a lane runs its calls in
order until one is a product. When every lane waits, the weight that comes first is dequantised for all lanes that wait
for it, and they go on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from firstdiff.dumps import Site, Step, Trace
from firstdiff.judging.needed import Judging, Wanted
from firstdiff.judging.past import missing_past
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import scores_in_parts
from firstdiff.model.engine import Model
from firstdiff.model.graph.operation import NodeOperation
from firstdiff.model.graph.products import expert_products
from firstdiff.model.operations import finished, linear
from firstdiff.model.outline import Awaited, outline, sources
from firstdiff.model.probe import Call, Probe
from firstdiff.model.products import Rows, products
from firstdiff.model.value import Value
from firstdiff.model.weights import Weight


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """Some steps that a probe goes through: all calls, or those of the `wanted` sites and what these need.

    The `past` tokens before the first step are not known.
    """

    model: Model
    steps: Sequence[Step]
    probe: Probe
    wanted: Wanted | None = None
    past: int = 0


@np.errstate(all="ignore")  # a candidate's NaN and infinities are judged, not warned of
def together(passes: Iterable[Pass]) -> None:
    """Make passes side by side. Each probe has what it has in a pass of its own, but calls of one layer at a time."""
    under_way = [_UnderWay.of(each) for each in passes]
    with scores_in_parts():
        for unit in sorted({unit for each in under_way for unit in each.units}):
            _through([lane for each in under_way for lane in each.lanes(unit)])


def run_trace(
    model: Model, trace: Trace, probe: Judging, wanted: Wanted | None = None, *, steps: int | None = None
) -> None:
    """Run the first `steps` of a trace, or all, through a probe, behind what the trace lacks: one step after another.

    All calls are run, or those of the `wanted` sites and what these need.
    """
    each = Pass(model, trace.steps[:steps], probe, wanted, missing_past(model, trace))
    if wanted is None:
        for _ in model.forward(each.steps, probe, past=each.past):
            pass
        return
    calls, values = needed(each)
    for awaited in calls:
        values[awaited] = probe.run(fed(awaited.call, values))


def needed(each: Pass) -> tuple[list[Awaited], dict[Value, Value]]:
    """The calls that a pass runs, in execution order, and what is known of those that it need not run.

    The calls before a wanted site are run back to those whose values the probe knows from the recording. The probe then
    has for a wanted site what it has in a whole pass, but for whether anything upstream is wrong.
    """
    awaited = outline(each.model, each.steps, past=each.past)
    if each.wanted is None or not isinstance(each.probe, Judging):
        return list(awaited), {}
    calls = (a.call for a in awaited)
    todo = [c for c in calls if c.point and c.step >= 0 and each.wanted(Site(c.step, c.layer, c.point))]
    run = set(todo)
    values: dict[Value, Value] = {}
    while todo:
        for source in sources(todo.pop()):
            if source.call in run or source in values:
                continue
            known = each.probe.known(source.call) if source.call.point and source.call.step >= 0 else None
            if known is None:
                run.add(source.call)
                todo.append(source.call)
            else:
                values[source] = known
    return [a for a in awaited if a.call in run], values


def fed(call: Call, values: dict[Value, Value]) -> Call:
    """A call of an outline with values in the place of those that it awaits."""
    found = tuple(None if source is None else values[source] for source in call.sources)
    arrays = (x if value is None else value.array for x, value in zip(call.inputs, found, strict=True))
    return replace(call, inputs=tuple(arrays), sources=found)


@dataclass(frozen=True, slots=True, eq=False)
class _UnderWay:
    """A pass, the values that it has and that are still read, and the calls of each layer by step."""

    probe: Probe
    values: dict[Value, Value]
    reads: Counter[Value]
    units: dict[int, dict[int, deque[Awaited]]] = field(default_factory=dict)

    @classmethod
    def of(cls, each: Pass) -> _UnderWay:
        calls, values = needed(each)
        made = cls(each.probe, values, Counter(s for a in calls for s in sources(a.call)))
        of: dict[Value, int] = {}
        for a in calls:
            layer = -1 if a.call.layer is None else a.call.layer
            of[a] = max((layer, *(of.get(source, -1) for source in sources(a.call))))
            made.units.setdefault(of[a], {}).setdefault(a.call.step, deque()).append(a)
        return made

    def lanes(self, unit: int) -> Iterator[_Lane]:
        for calls in self.units.get(unit, {}).values():
            yield _Lane(self, calls)

    def fed(self, awaited: Awaited) -> Call:
        return fed(awaited.call, self.values)

    def run(self, awaited: Awaited, call: Call) -> None:
        self.values[awaited] = self.probe.run(call)
        for source in sources(awaited.call):
            self.reads[source] -= 1
            if not self.reads[source]:
                del self.values[source]
        if not self.reads[awaited]:
            del self.values[awaited]


@dataclass(frozen=True, slots=True, eq=False)
class _Lane:
    """The calls of one step in one layer that are still to be run."""

    of: _UnderWay
    calls: deque[Awaited]

    def advance(self) -> bool:
        """Run calls up to one that waits for a product, or for another lane; whether any was run."""
        before = len(self.calls)
        while self.calls and self.is_ready and self.product is None:
            awaited = self.calls.popleft()
            self.of.run(awaited, self.of.fed(awaited))
        return len(self.calls) < before

    @property
    def is_ready(self) -> bool:
        """Whether all that the next call reads has been computed."""
        return all(source in self.of.values for source in sources(self.calls[0].call))

    @property
    def product(self) -> str | None:
        """The weight of the next call, where that is a product whose arithmetic is known."""
        call = self.calls[0].call if self.calls else None
        weight = None if call is None else _weight(call)
        return None if call is None or weight is None or self.of.probe.foreseen(call) is None else weight.name


def _through(lanes: Sequence[_Lane]) -> None:
    """Run all calls of a layer."""
    for lane in lanes:
        lane.of.probe.watch(*_where(lane))
    while True:
        while any(lane.advance() for lane in lanes):
            pass
        waiting = [lane for lane in lanes if lane.calls and lane.is_ready]
        if not waiting:
            return
        first = min(waiting, key=lambda lane: lane.calls[0].call.order).product
        _multiplied([lane for lane in waiting if lane.product == first])


def _weight(call: Call) -> Weight | None:
    """The weight that a product reads; None for what is no product with one, or of one expert each."""
    if call.op is linear:
        return cast("Weight", call.argument("weight"))
    experts = isinstance(call.op, NodeOperation) and call.op.node.op == "MUL_MAT_ID"
    return call.inputs[0] if experts and isinstance(call.inputs[0], Weight) else None


def _where(lane: _Lane) -> tuple[int, int | None]:
    call = lane.calls[0].call
    return call.step, call.layer


def _multiplied(lanes: Sequence[_Lane]) -> None:
    """Run the products of one weight. Engines may hold it in different ways: each way is made once."""
    held: dict[tuple[object, ...], list[tuple[_Lane, Call, Arithmetic]]] = {}
    for lane in lanes:
        call = lane.of.fed(lane.calls[0])
        arithmetic = lane.of.probe.foreseen(call)
        assert arithmetic is not None, "it waits for a product"
        call = call.held_in(arithmetic)
        weight = _weight(call)
        assert weight is not None, "it waits for one"
        of = weight.held, weight.largest, weight.raw.ctypes.data
        held.setdefault(of, []).append((lane, call, arithmetic))
    for several in held.values():
        results = _of_one(several) if several[0][1].op is linear else _of_experts(several)
        for (lane, call, arithmetic), y in zip(several, results, strict=True):
            call.prepared(arithmetic, y)
            lane.of.run(lane.calls.popleft(), call)


def _of_one(several: Sequence[tuple[_Lane, Call, Arithmetic]]) -> list[Array]:
    """Products with one matrix, and their biases."""
    rows = [Rows(call.argument("x"), arithmetic, owner=lane.of) for lane, call, arithmetic in several]
    return [
        finished(y, call.argument("bias"), heads=call.argument("heads"), arithmetic=arithmetic)
        for (_, call, arithmetic), y in zip(several, products(several[0][1].argument("weight"), rows), strict=True)
    ]


def _of_experts(several: Sequence[tuple[_Lane, Call, Arithmetic]]) -> list[Array]:
    """Products with the matrices of the experts that tokens chose."""
    ops = [cast("NodeOperation", call.op) for _, call, _ in several]
    chosen = [
        op.experts(call.inputs, arithmetic, lane.of) for op, (lane, call, arithmetic) in zip(ops, several, strict=True)
    ]
    known = [of for of in chosen if of is not None]
    made = expert_products(known[0][0], [of for _, of in known])
    return [op.finished(y, arithmetic) for op, y, (_, _, arithmetic) in zip(ops, made, several, strict=True)]
