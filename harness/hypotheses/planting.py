"""Hypotheses planted: the reference's run with faults made in it on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firstdiff.dumps import Site, TraceWriter
from firstdiff.engines.reference import Recording, record_reference
from firstdiff.errors import UsageError
from firstdiff.hypotheses import TABLE, Hypothesis, Scene, Values
from firstdiff.hypotheses.catalogue import no_such
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.engine import Model
from firstdiff.model.probe import Call
from firstdiff.model.value import Value
from firstdiff.progress import QUIET, Progress


@dataclass(frozen=True, slots=True)
class Planted:
    """A hypothesis made true on purpose, at one layer or (None) everywhere; in its first way, or with the values."""

    hypothesis: Hypothesis
    layer: int | None = None
    values: Values | None = None

    def touches(self, call: Call) -> bool:
        """Whether a call is at the plant's place."""
        if self.layer is None or call.layer == self.layer:
            return True
        return call.layer is None and self.hypothesis.outside_layers


@dataclass(frozen=True, slots=True, eq=False)
class Touched(Value):
    """The value of a silent call that a planted hypothesis changed, and what it would have been."""

    right: Array


def untouched(call: Call) -> Call:
    """The call on inputs that no silent call before it has changed; the call itself where none has."""
    return call.with_inputs({source: source.right for source in call.sources if isinstance(source, Touched)})


@dataclass
class Planting(Recording):
    """Stores every value of a step, with the planted hypotheses in effect.

    `touched` lists, in execution order, the sites whose value a planted hypothesis changed, and `effective` the plants
    that did it.
    """

    model: Model
    planted: Sequence[Planted] = ()
    touched: list[Site] = field(default_factory=list, init=False)
    effective: list[Planted] = field(default_factory=list, init=False)
    _ran: dict[Site, int] = field(default_factory=dict, init=False)
    _ways: dict[tuple[str, str], Values] = field(default_factory=dict, init=False)

    @property
    def scene(self) -> Scene:
        """What surrounds the call at hand."""
        return Scene(self.model, self.arithmetic, lambda other: self.tensors.get(other.key), self._ran)

    def value(self, call: Call) -> Value:
        """Compute the value, wrongly where a plant says so, and keep it."""
        site = Site(call.step, call.layer, call.point)
        value, touched = self._computed(call)
        self.tensors[site.key] = value
        self._ran[site] = call.order
        if touched:
            self.touched.append(site)
        return Value(value)

    def silent(self, call: Call) -> Value:
        """Compute the value, wrongly where a plant says so; a recorded value that is made of it is touched then."""
        value, touched = self._computed(call)
        return Touched(value, untouched(call).compute(self.arithmetic)) if touched else Value(value)

    def _computed(self, call: Call) -> tuple[Array, bool]:
        """The value of a call, and whether plants changed it, here or in a silent call before it."""
        wrong = call
        planted: list[Planted] = []
        for plant in self.planted:
            if wrong.op is call.op:  # of an operation that another has replaced, nothing is left to go wrong
                changed = self._gone_wrong(plant, wrong)
                wrong, planted = (wrong, planted) if changed is None else (changed, [*planted, plant])
        right = untouched(call)
        if wrong is call and right is call:
            return call.compute(self.arithmetic), False
        with np.errstate(all="ignore"):  # a fault may well overflow
            value = wrong.compute(self.arithmetic)
            touched = not np.array_equal(value, right.compute(self.arithmetic), equal_nan=True)
        self.effective += planted if touched else []
        return value, touched

    def _gone_wrong(self, plant: Planted, call: Call) -> Call | None:
        """The call in the plant's own way, or in the first that applied to the point: a faulty engine keeps to one."""
        if not plant.touches(call):
            return None
        scene = self.scene
        values = plant.values or self._ways.get((plant.hypothesis.id, call.point))
        if values is not None:
            return plant.hypothesis.apply(call, scene, values)
        found = plant.hypothesis.first(call, scene)
        if found is None:
            return None
        self._ways[plant.hypothesis.id, call.point] = found[0]
        return found[1]


def record_planted(
    model: Model,
    prompt: Sequence[int],
    writer: TraceWriter | Any,  # noqa: ANN401 - anything with its `step`
    *,
    arithmetic: Arithmetic,
    decode: int = 0,
    forced: Sequence[Sequence[int]] = (),
    planted: Sequence[Planted] = (),
    progress: Progress = QUIET,
) -> list[Site]:
    """Run the reference with hypotheses planted in it, and write every intermediate, step by step.

    Parameters
    ----------
    model, prompt, writer, decode, forced, progress
        As in :func:`firstdiff.engines.reference.record_reference`.
    arithmetic
        How to round.
    planted
        Hypotheses to make true; none for the right run.

    Returns
    -------
    The sites that the planted hypotheses touched, in execution order.

    Raises
    ------
    UsageError
        Where a planted hypothesis changed nothing: it does not apply to this model, layer or run.
    """
    probe = Planting(arithmetic, model, planted)
    with np.errstate(all="ignore"):  # what follows a fault may overflow too
        count = record_reference(model, prompt, writer, probe=probe, decode=decode, forced=forced, progress=progress)
    for plant in planted:
        if plant not in probe.effective:
            where = "at any layer" if plant.layer is None else f"at layer {plant.layer}"
            raise UsageError(
                f"--bug {plant.hypothesis.id} changes no value {where} of {model.gguf.path.name} in "
                f"{count} step{'s' if count > 1 else ''} ({plant.hypothesis.told({}, model)}; "
                f"it applies to {', '.join(plant.hypothesis.where.points)})"
            )
    return probe.touched


def planted(bug: str, layer: int | None) -> Planted:
    """A plant by its id.

    Raises
    ------
    UsageError
        For an id that is not in the table.
    """
    if bug not in TABLE:
        raise UsageError(f"--bug {bug:.80}: {no_such(bug)}")
    return Planted(TABLE[bug], layer)
