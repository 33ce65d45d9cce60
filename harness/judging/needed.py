"""Running only what some sites need: their own calls, and those before them back to values that are recorded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from firstdiff.dumps import Site, Step, Trace
from firstdiff.judging.past import missing_past
from firstdiff.model.engine import Model
from firstdiff.model.outline import outline, sources
from firstdiff.model.probe import Call, Probe
from firstdiff.model.shapes import shape_of
from firstdiff.model.value import Value

Wanted = Callable[[Site], bool]
"""Which sites are wanted. A silent call has no site: it runs where a wanted site needs it."""


class Judging(Probe):
    """A probe that goes on with the candidate's recorded values."""

    def run(self, call: Call) -> Value:
        """Return the value of a call; nothing is computed of what went before a trace begins."""
        if call.step >= 0:
            return super().run(call)
        shape = shape_of(call)
        if shape is None:
            shape = call.compute(self.arithmetic).shape
        return self.unknown(call, shape)

    def unknown(self, _call: Call, shape: tuple[int, ...]) -> Value:
        """Stand in for what was computed before the trace begins, which nobody knows."""
        return Value(np.full(shape, np.nan, np.float32))

    @abstractmethod
    def known(self, call: Call) -> Value | None:
        """Return the value to go on with where the recording gives it, whatever the call computes; or else None.

        Only the shapes of the call's inputs are known yet.
        """


def run(model: Model, steps: Sequence[Step], probe: Judging, wanted: Wanted | None = None, *, past: int = 0) -> None:
    """Run some steps through a probe: all calls, or those of the `wanted` sites and what these need.

    The `past` tokens before the first step are not known.

    The calls before a wanted site are run back to those whose values the probe knows from the recording. The probe then
    has for a wanted site what it has in a whole pass, but for whether anything upstream is wrong.
    """
    if wanted is None:
        for _ in model.forward(steps, probe, past=past):
            pass
        return
    awaited = outline(model, steps, past=past)
    calls = [a.call for a in awaited]
    todo = [c for c in calls if c.point and c.step >= 0 and wanted(Site(c.step, c.layer, c.point))]
    needed = set(todo)
    values: dict[Value, Value] = {}
    while todo:
        for source in sources(todo.pop()):
            if source.call in needed or source in values:
                continue
            known = probe.known(source.call) if source.call.point and source.call.step >= 0 else None
            if known is None:
                needed.add(source.call)
                todo.append(source.call)
            else:
                values[source] = known
    for each in awaited:
        if each.call in needed:
            values[each] = probe.run(_fed(each.call, values))


def run_trace(
    model: Model, trace: Trace, probe: Judging, wanted: Wanted | None = None, *, steps: int | None = None
) -> None:
    """Run the first `steps` of a trace, or all, through a probe as :func:`run` does, behind what the trace lacks."""
    run(model, trace.steps[:steps], probe, wanted, past=missing_past(model, trace))


def _fed(call: Call, values: dict[Value, Value]) -> Call:
    """A call of an outline with values in the place of those that it awaits."""
    found = tuple(None if source is None else values[source] for source in call.sources)
    arrays = (x if value is None else value.array for x, value in zip(call.inputs, found, strict=True))
    return replace(call, inputs=tuple(arrays), sources=found)
