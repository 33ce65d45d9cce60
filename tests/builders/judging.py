"""Judging: a trace's sites judged, and engines to judge that are the reference with its calls or results changed.

Some round as no known arithmetic does, others are wrong at every layer alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Step, Trace
from firstdiff.engines.reference import record_reference
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted, Planting
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import F32, F64, Arithmetic
from firstdiff.model.attention import attend, scores
from firstdiff.model.engine import Model
from firstdiff.model.operations import linear, rms_norm
from firstdiff.model.probe import Call
from firstdiff.model.rounding import round_to
from firstdiff.model.value import Value
from firstdiff.model.weights import Weight
from firstdiff.runs import judge as judging
from firstdiff.runs.run import Run
from firstdiff.verdict import SiteVerdict, Status, Verdict

Floats = npt.NDArray[np.float32]
Before = Callable[[Call], Call]
After = Callable[[Call, Floats], Floats]
PRODUCTS = ("Qcur", "Kcur", "Vcur", "attn_out", "ffn_gate", "ffn_up", "ffn_out", "result_output")
NORMS = ("attn_norm", "ffn_norm", "result_norm")


def replayed(model: Model, trace: Trace, arithmetic: Arithmetic) -> list[SiteVerdict]:
    probe = Replay(arithmetic, trace)
    for _ in model.forward(trace.steps, probe):
        pass
    return probe.sites


def judge(model: Model, trace: Trace, *, witness: Trace | None = None, **how: Any) -> Verdict:
    """The verdict on a trace: as every command judges it, without a folder."""
    return judging.judge(Run(model, **how), trace, witness=witness)


def with_status(sites: Sequence[SiteVerdict], status: Status) -> list[str]:
    return [str(s.site) for s in sites if s.status is status]


@dataclass
class Changed(Planting):
    """Records the reference with its calls changed before, or its results after."""

    before: Before = lambda call: call
    after: After = lambda _, y: y
    kernels: Callable[[int], Arithmetic] | None = None  # by the number of tokens of a step
    steps: Sequence[Step] = ()

    def run(self, call: Call) -> Value:
        if self.kernels is not None:
            self.arithmetic = self.kernels(len(self.steps[call.step].tokens))
        return super().run(call)

    def value(self, call: Call) -> Value:
        """Compute, and keep what a changed engine would dump."""
        y = self.after(call, super().value(self.before(call)).array)
        self.tensors[Site(call.step, call.layer, call.point).key] = y
        return Value(y)

    def _gone_wrong(self, plant: Planted, call: Call) -> Call | None:
        """A product that is added up in another way goes wrong as any product does."""
        if call.op is not _stranded:
            return super()._gone_wrong(plant, call)
        wrong = super()._gone_wrong(plant, replace(call, op=linear))
        return None if wrong is None else replace(wrong, op=_stranded)


def dump(
    model: Model,
    prompt: Sequence[int],
    *bugs: tuple[str, int | None] | Planted,
    before: Before = lambda call: call,
    after: After = lambda _, y: y,
    arithmetic: Arithmetic = F32,
    kernels: Callable[[int], Arithmetic] | None = None,
    later: Sequence[Sequence[int]] = ((5,),),
) -> Trace:
    """An undeclared trace of a prompt and of later steps: of one more token."""
    planted = [bug if isinstance(bug, Planted) else Planted(TABLE[bug[0]], bug[1]) for bug in bugs]
    steps: list[Step] = []
    for tokens in (prompt, *later):
        start = sum(len(step.tokens) for step in steps)
        steps.append(Step(tuple(tokens), tuple(range(start, start + len(tokens)))))
    probe = Changed(arithmetic, model, planted, before=before, after=after, kernels=kernels, steps=steps)
    writer = MemoryWriter()
    for step, _ in zip(steps, model.forward(steps, probe), strict=True):
        writer.step(step, probe.finish())
    return writer.trace()


def going_on_with(
    model: Model, prompt: Sequence[int], *bugs: tuple[str, int | None], **by: Floats | Callable[[Floats], Floats]
) -> Trace:
    """The trace of an engine that goes on with altered tensors, by name: ``ffn_gate_2`` for ffn_gate-2.

    What follows them is computed from them, as in an engine and unlike in a dump that was edited.
    """

    def after(call: Call, y: Floats) -> Floats:
        change = by.get(f"{call.point}_{call.layer}", y)
        return change(y) if callable(change) else change

    planted = [Planted(TABLE[bug], layer) for bug, layer in bugs]
    writer = MemoryWriter()
    record_reference(model, prompt, writer, probe=Changed(F64, model, planted, after=after))
    return writer.trace(arithmetic="f32")


def bits(x: Floats, kept: int, *, cut: bool = False) -> Floats:
    """Numbers of so many bits after the point, rounded or cut off."""
    words = np.ascontiguousarray(x, np.float32).view(np.uint32)
    lost = 23 - kept
    if not cut:
        words = words + np.uint32(1 << (lost - 1))
    return (words & np.uint32(0xFFFFFFFF << lost & 0xFFFFFFFF)).view(np.float32)


def noise(size: float, *ops: object) -> After:
    """Every result of some operations off by a random share of itself."""
    rng = np.random.default_rng(0)

    def after(call: Call, y: Floats) -> Floats:
        if call.op not in ops:
            return y
        return (y * (1 + size * rng.standard_normal(y.shape))).astype(np.float32)

    return after


def activations(kept: int, *, cut: bool = False) -> Before:
    """Activations of so many bits go into every product."""

    def before(call: Call) -> Call:
        if call.op is not linear:
            return call
        return replace(call, inputs=(bits(call.inputs[0], kept, cut=cut), *call.inputs[1:]))

    return before


def sums_in_f16(call: Call) -> Call:
    """Products whose terms are added one by one in f16, in four strands."""
    return replace(call, op=_stranded) if call.op is linear else call


def _stranded(
    x: Floats, weight: Weight, bias: Weight | None = None, *, heads: int | None = None, arithmetic: Arithmetic
) -> Floats:
    assert bias is None
    assert arithmetic is F32
    rows = round_to(weight.values(), "f16")
    x = round_to(x, "f16")
    strands = np.zeros((4, len(x), len(rows)), np.float16)
    for k in range(x.shape[1]):
        term = x[:, k : k + 1] * rows[:, k]
        strands[k % 4] = (strands[k % 4].astype(np.float32) + term).astype(np.float16)
    y = strands.astype(np.float32).sum(0)
    return y if heads is None else y.reshape(len(y), heads, -1)


def weights_off(size: float, *points: str) -> Before:
    """Weights of some points wrong by a random share of themselves, the same at every token."""

    def before(call: Call) -> Call:
        if call.point not in points:
            return call
        values = call.inputs[1].values()
        wrong = (values * (1 + size * np.random.default_rng(1).standard_normal(values.shape))).astype(np.float32)
        return replace(call, inputs=(call.inputs[0], replace(call.inputs[1], dense=wrong), *call.inputs[2:]))

    return before


def attribute(name: str, factor: float, *points: str) -> Before:
    """An attribute of some points wrong by a factor."""

    def before(call: Call) -> Call:
        if call.point not in points:
            return call
        return replace(call, attributes=call.attributes | {name: call.attributes[name] * factor})

    return before


UNKNOWN: dict[str, tuple[Before, After]] = {
    "noise of 3e-3 on products": (lambda c: c, noise(3e-3, linear)),
    "noise of 3e-3 on products and attention": (lambda c: c, noise(3e-3, linear, scores, attend)),
    "noise of 2e-3 on norms": (lambda c: c, noise(2e-3, rms_norm)),
    "activations of 5 bits": (activations(5), lambda _, y: y),
    "activations cut to 5 bits": (activations(5, cut=True), lambda _, y: y),
    "activations cut to 10 bits": (activations(10, cut=True), lambda _, y: y),
    "all results cut to 7 bits": (lambda c: c, lambda _, y: bits(y, 7, cut=True)),
    "all results of 9 bits": (lambda c: c, lambda _, y: bits(y, 9)),
    "sums in f16": (sums_in_f16, lambda _, y: y),
}
