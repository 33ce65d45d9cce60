"""What the graph tier costs beside llama.cpp itself: ``python tests/bench/graph_cost.py [MODEL]``.

A prompt of 33 tokens and eight decode steps are run plainly, with the graph of each step captured, and with every point
copied out; then what was recorded is replayed. Times are of the processor, on one thread, as ratios to the plain run in
the same process; each is the least of several.
"""

from __future__ import annotations

import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

import numpy as np

from builders.models import SMOLLM2
from builders.traces import MemoryWriter
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.engines.llamacpp_capture import greedy, written
from firstdiff.engines.llamacpp_graph import GraphHook
from firstdiff.engines.llamacpp_points import PointHook
from firstdiff.engines.opening import open_reference
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.layouts import Alignment
from firstdiff.model.arithmetic import GGML_CPU
from firstdiff.model.graph.reference import GraphArchitecture
from firstdiff.progress import QUIET
from firstdiff.runs.replays import replayed_in

PROMPT, DECODE, REPEATS = 33, 8, 5


def seconds(
    engine: LlamaCpp, steps: Sequence[Sequence[int]], hook: Callable[[], Any], each: Callable[[Any], object]
) -> Any:
    """Processor seconds of the prompt and of the decode steps, the least of several runs."""
    best = np.full(2, np.inf)
    for _ in range(REPEATS):
        made = hook()
        with engine.context(sum(map(len, steps)), PROMPT, made) as context:
            took, position = [], 0
            for tokens in steps:
                start = time.process_time()
                context.decode(tokens, position)
                each(made)
                took.append(time.process_time() - start)
                position += len(tokens)
        best = np.minimum(best, (took[0], sum(took[1:])))
    return best


def main(path: Path) -> None:
    """Print the table."""
    model = open_reference(path, tier="graph")
    assert isinstance(model.written, GraphArchitecture)
    with LlamaCpp(path) as engine:
        steps = greedy(engine, [[1, *range(300, 300 + PROMPT - 1)]], DECODE)
        plain = seconds(engine, steps, lambda: None, lambda _: None)
        graphs = seconds(engine, steps, lambda: GraphHook(model.gguf.tensors), lambda hook: hook.finish())
        programs = model.written.prepare(steps)
        points = seconds(engine, steps, lambda: PointHook(programs), lambda hook: hook.finish())
    start = time.process_time()
    model.written.forget()
    model.written.prepare(steps)
    prepared = time.process_time() - start
    writer = MemoryWriter()
    with LlamaCpp(path) as engine:
        written(engine, PointHook(programs), steps[0], writer, forced=steps[1:])  # type: ignore[arg-type]
    trace = writer.trace(arithmetic="ggml-cpu")
    replay = np.inf
    for _ in range(REPEATS):
        start = time.process_time()
        replayed_in(model, trace, Fingerprint(GGML_CPU), Alignment(), QUIET, None, lambda site: site.step == 0)
        replay = min(replay, time.process_time() - start)
    tracemalloc.start()
    replayed_in(model, trace, Fingerprint(GGML_CPU), Alignment(), QUIET, None)
    peak = tracemalloc.get_traced_memory()[1]
    rows = (
        ("plain", plain, "1.00", "1.00"),
        ("the graph captured", graphs, *(f"{r:.2f}" for r in graphs / plain)),
        ("every point copied out", points, *(f"{r:.2f}" for r in points / plain)),
    )
    sys.stdout.write(f"{path.name}: {PROMPT} tokens, {DECODE} steps; {len(programs[0].instructions):,} calls a step\n")
    for name, (prompt, decode), one, other in rows:
        each = decode / DECODE * 1000
        sys.stdout.write(
            f"  {name:24} prompt {prompt:6.3f} s {one:>5} times   decode {each:6.1f} ms {other:>5} times\n"
        )
    sys.stdout.write(f"  graphs captured and lowered once: {prepared:.2f} s\n")
    sys.stdout.write(f"  replay of the prompt: {replay:.2f} s, {replay / plain[0]:.2f} times llama.cpp's prompt\n")
    sys.stdout.write(f"  memory of the replay at its peak: {peak / 2**20:.0f} MiB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SMOLLM2)
