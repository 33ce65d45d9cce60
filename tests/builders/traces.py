"""Traces: held in memory, changed, and the bytes of their files damaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from firstdiff.dumps import Site, Step, Trace, TraceWriter, open_trace

Array = npt.NDArray[Any]


class MemoryWriter:
    """Takes steps as a trace writer does, and keeps them in memory; float64 is stored as a dump would, in float32."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.tensors: dict[Site, npt.NDArray[Any]] = {}

    def step(self, step: Step, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self.part(step, tensors)
        self.steps.append(step)

    def part(self, _step: Step, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        for key, x in tensors.items():
            site = Site.of_key(key, len(self.steps))
            self.tensors[site] = x.astype(np.float32) if x.dtype == np.float64 else x

    def trace(self, **engine: Any) -> Trace:
        return Trace.from_arrays(self.steps, self.tensors, engine={"name": "planted"} | engine, model={})


def rewrite_trace(
    source: Path,
    out: Path,
    change: Callable[[str, Array], Array | None] = lambda _, x: x,
    *,
    model: dict[str, Any] | None = None,
    steps: int | None = None,
) -> Path:
    """Copy a trace, each tensor changed by its site's name or (None) left out; `steps` cuts it short by a crash."""
    trace = open_trace(source)
    writer = TraceWriter(out, engine=trace.engine, model=trace.model if model is None else model)
    for index, step in enumerate(trace.steps[:steps]):
        changed = {s.key: change(str(s), np.array(trace[s])) for s in trace.sites() if s.step == index}
        writer.step(step, {key: x for key, x in changed.items() if x is not None})
    if steps is None:
        writer.close()
    return out


def altered(trace: Trace, **by: Array | Callable[[Array], Array]) -> Trace:
    """The trace with some tensors altered or replaced, by name: ``ffn_gate_2`` for ffn_gate-2."""
    tensors = {site: np.array(trace[site]) for site in trace.sites()}
    for name, change in by.items():
        point, _, layer = name.rpartition("_")
        site = Site(0, int(layer), point)
        tensors[site] = change(tensors[site]) if callable(change) else change
    return Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={})


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Good bytes with some replaced, some taken out and some put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed)))
        changed[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(changed[: draw(st.none() | st.integers(0, len(changed)))])
