"""Recording and replay beside llama.cpp's plain decode, everything on one core; prints seconds as JSON.

Run as a process, ``python one_core.py MODEL ROUNDS``, with the environment `timing.ONE_THREAD`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if hasattr(os, "sched_setaffinity"):  # before anything counts the processors
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

from timing import in_turn

from firstdiff.dumps import Step, TraceWriter, open_trace
from firstdiff.engines import ggml
from firstdiff.engines.llamacpp import Context, LlamaCpp
from firstdiff.engines.llamacpp_capture import Hook
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import GGML_CPU
from firstdiff.model.engine import open_model
from firstdiff.model.probe import Probe

TOKENS = tuple(range(300, 320))
STEP = Step(TOKENS, tuple(range(len(TOKENS))))


def seconds(path: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way of running the prompt, one number a round. Contexts are made and warm beforehand."""
    ggml.check_layout()
    hook = Hook(open_model(path).nodes, tokens=len(TOKENS), keys=len(TOKENS))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = stack.enter_context(LlamaCpp(path))
        plain = stack.enter_context(engine.context(len(TOKENS), len(TOKENS), None))
        hooked = stack.enter_context(engine.context(len(TOKENS), len(TOKENS), hook))

        def record() -> None:
            decode(hooked)
            hook.finish()

        def write(to: Path = folder / "round") -> None:
            with TraceWriter(to, engine={"name": "llama.cpp", "arithmetic": "ggml-cpu"}, model={}) as writer:
                decode(hooked)
                writer.step(STEP, hook.finish())

        write(folder / "kept")
        calls = {"plain": lambda: decode(plain), "recorded": record, "written": write}
        return in_turn(warm(calls | replays(path, folder / "kept")), rounds)


def decode(context: Context) -> None:
    """Run the prompt in an emptied cache."""
    llama = ggml.bindings()
    llama.llama_memory_clear(llama.llama_get_memory(context._pointer), True)
    context.decode(TOKENS, 0)


def replays(path: Path, recorded: Path) -> dict[str, Callable[[], None]]:
    """Return the replay of a trace, and the reference's free run of the same step, as calls."""
    model, trace = open_model(path), open_trace(recorded)

    def judge() -> None:
        probe = Replay(GGML_CPU, trace)
        for _ in model.forward(trace.steps, probe):
            pass
        assert not [s.site for s in probe.sites if s.local_error is None or s.local_error > 1e-6]

    def free() -> None:
        for _ in model.forward([STEP], Probe(GGML_CPU)):
            pass

    return {"replayed": judge, "reference": free}


def warm(calls: dict[str, Callable[[], None]]) -> dict[str, Callable[[], None]]:
    """Make each call once."""
    for call in calls.values():
        call()
    return calls


if __name__ == "__main__":
    sys.stdout.write(json.dumps(seconds(Path(sys.argv[1]), int(sys.argv[2]))))
    sys.stdout.flush()
