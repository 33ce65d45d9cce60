"""The reference's run, every intermediate kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from firstdiff.dumps import Site, Step, TraceWriter
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value
from firstdiff.progress import QUIET, Progress


@dataclass
class Recording(Probe):
    """Stores every value of a step."""

    tensors: dict[str, Array] = field(default_factory=dict, init=False)

    def value(self, call: Call) -> Value:
        """Compute the value, and keep it."""
        value = self.tensors[Site(call.step, call.layer, call.point).key] = call.compute(self.arithmetic)
        return Value(value)

    def finish(self) -> dict[str, Array]:
        """The step's tensors by key; ready for the next step afterwards."""
        tensors, self.tensors = self.tensors, {}
        return tensors


def record_reference(
    model: Model,
    prompt: Sequence[int],
    writer: TraceWriter | Any,  # noqa: ANN401 - anything with its `step`
    *,
    probe: Recording,
    decode: int = 0,
    forced: Sequence[Sequence[int]] = (),
    progress: Progress = QUIET,
) -> int:
    """Run the reference and write every intermediate, step by step.

    Parameters
    ----------
    model, prompt, writer, decode, forced
        As in :func:`firstdiff.engines.llamacpp_capture.capture`.
    probe
        Keeps the values of a step, in its arithmetic.
    progress
        Shows at which layer the run is.

    Returns
    -------
    How many steps were run.
    """
    steps = [_step(prompt, 0)]
    total = len(prompt)
    for tokens in forced:
        steps.append(_step(tokens, total))
        total += len(tokens)
    count = len(steps) if forced else 1 + decode
    probe.watch = progress.layers(model.hp.n_layer, count)
    for index, logits in enumerate(model.forward(steps, probe)):  # reads `steps` as it grows
        writer.step(steps[index], probe.finish())
        if len(steps) < count:
            steps.append(_step([int(logits[-1].argmax())], total))
            total += 1
    return count


def _step(tokens: Sequence[int], position: int) -> Step:
    return Step(tuple(tokens), tuple(range(position, position + len(tokens))))
