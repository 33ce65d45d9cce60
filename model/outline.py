"""The outline of a forward pass: its calls and what each of them reads, before any of them is run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model, StepLike
from firstdiff.model.probe import Call, Probe
from firstdiff.model.shapes import shape_of
from firstdiff.model.value import Value


@dataclass(frozen=True, slots=True, eq=False)
class Awaited(Value):
    """A value that nobody has computed yet.

    Parameters
    ----------
    array
        Zeros of the value's shape, which take no memory.
    call
        The call that computes it; its sources are awaited too.
    """

    call: Call


@lru_cache(maxsize=256)  # layers are alike
def _zeros(shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(np.float32(0), shape)


@dataclass
class _Outline(Probe):
    """Notes every call and runs none."""

    awaited: list[Awaited] = field(default_factory=list, init=False)

    def run(self, call: Call) -> Value:
        """Note the call. An operation whose shapes nobody has written down is run, on zeros."""
        shape = shape_of(call)
        if shape is None:
            with np.errstate(all="ignore"):
                shape = call.compute(self.arithmetic).shape
        self.awaited.append(Awaited(_zeros(shape), call))
        return self.awaited[-1]


_kept: deque[tuple[Model, tuple[int, list[tuple[tuple[int, ...], tuple[int, ...]]]], tuple[Awaited, ...]]]
_kept = deque(maxlen=4)
"""The outlines that were last asked for: judging one trace asks for the same one a dozen times."""


def outline(model: Model, steps: Sequence[StepLike], *, past: int = 0) -> tuple[Awaited, ...]:
    """Return the value of every call of some steps, in execution order, none of them computed.

    An architecture can only hand values to the probe, so that what it calls does not depend on their numbers.
    """
    key = past, [(tuple(step.tokens), tuple(step.positions)) for step in steps]
    for of, known, values in list(_kept):
        if of is model and known[0] == past and known[1][: len(steps)] == key[1]:
            return values if len(known[1]) == len(steps) else tuple(a for a in values if a.call.step < len(steps))
    probe = _Outline(F32)
    for _ in model.forward(steps, probe, past=past):
        pass
    _kept.append((model, key, tuple(probe.awaited)))
    return _kept[-1][2]


def sources(call: Call) -> Iterator[Awaited]:
    """Yield the awaited values that a call of an outline reads."""
    yield from (source for source in call.sources if isinstance(source, Awaited))
