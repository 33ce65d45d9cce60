"""Whether an explanation is right: it gives the numbers of the fault on another prompt, which it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from firstdiff.dumps import Site, Step
from firstdiff.dumps.points import axes_of
from firstdiff.explaining.measured.statements import MEASURED
from firstdiff.hypotheses import TABLE, Hypothesis, Scene, Values
from firstdiff.judging.measure import measure
from firstdiff.judging.rows import counted
from firstdiff.model.arithmetic import F32, F64, Array
from firstdiff.model.engine import Model
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value
from firstdiff.verdict import Explanation

SAME = 0.05
"""What an explanation may leave of a fault's effect on another prompt, and be right."""

Make = Callable[[Call, Scene], Call | None]


@dataclass
class Calls(Probe):
    """Runs freely, and keeps every call with its value."""

    calls: dict[Site, Call] = field(default_factory=dict)
    tensors: dict[Site, Array] = field(default_factory=dict)

    def value(self, call: Call) -> Value:
        """Compute, and keep."""
        site, x = Site(call.step, call.layer, call.point), call.compute(self.arithmetic)
        self.calls[site], self.tensors[site] = call, x
        return Value(x)


@lru_cache(maxsize=16)
def ran(model: Model, tokens: tuple[int, ...]) -> Calls:
    """A free run of a prompt, and a token after it."""
    probe = Calls(F64)
    steps = [Step(tuple(tokens), tuple(range(len(tokens)))), Step((tokens[0],), (len(tokens),))]
    for _ in model.forward(steps, probe):
        pass
    return probe


def gives_the_same(model: Model, e: Explanation, make: Make, site: Site, other: Calls) -> bool | None:
    """Whether an explanation of a site does what a fault does, on another prompt; None where the fault is not there.

    Parameters
    ----------
    model, e, site
        What was explained.
    make
        Makes the fault.
    other
        The right run of the other prompt.
    """
    call = other.calls[site]
    scene = _scene(model, other)
    with np.errstate(all="ignore"):
        wrong = make(call, scene)
        if wrong is None:
            return None
        right, true = call.compute(F64), wrong.compute(F64)
        said: Call | None = call
        for id_ in (e.hypothesis or "").split(" + "):
            said = None if said is None else {**TABLE, **MEASURED}[id_].apply(said, scene, e.attributes)
        if said is None:
            return False
        axes, seen = axes_of(call.point, true.ndim), counted(call.point, true, call)
        told = said.compute(F64)
        # Both beside the right numbers: what the fault leaves may be next to nothing.
        off = measure(right + (told - true), right, axes=axes, floor=0.0, seen=seen).error
        effect = measure(true, right, axes=axes, floor=0.0, seen=seen).error
    return off <= SAME * effect


@dataclass
class OnAnotherPrompt:
    """Says whether what was measured at a site is a hypothesis of the table, by another prompt of as many tokens."""

    model: Model
    tokens: tuple[int, ...]
    hypothesis: Hypothesis
    _ways: dict[str, Values] = field(default_factory=dict)

    def __call__(self, e: Explanation, site: Site) -> bool:
        """Whether it gives the hypothesis's numbers; where the fault is not on the other prompt, it is believed."""
        known = sorted(set(self.tokens))
        other = ran(self.model, tuple(known[(7 * i + 3) % len(known)] for i in range(len(self.tokens))))
        own = ran(self.model, self.tokens)
        if (
            site not in own.calls
            or site not in other.calls
            or self._made(own.calls[site], _scene(self.model, own)) is None
        ):
            return True
        return gives_the_same(self.model, e, self._made, site, other) is not False

    def _made(self, call: Call, scene: Scene) -> Call | None:
        """The fault, with the parameters that it had first at this point."""
        if call.point not in self._ways:
            first = self.hypothesis.first(call, scene)
            if first is None:
                return None
            self._ways[call.point] = first[0]
        return self.hypothesis.apply(call, scene, self._ways[call.point])


def _scene(model: Model, run: Calls) -> Scene:
    return Scene(model, F32, run.tensors.get, {site: call.order for site, call in run.calls.items()})
