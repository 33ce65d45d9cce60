"""Measuring: calls in turn, so that what else the machine does meets all of them alike, and whole processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
"""Environment in which numpy's products take one thread, whichever library they come from."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process that has ended: wall clock, peaks of its resident and of its own memory in bytes, and what it wrote."""

    seconds: float
    peak: int
    own: int
    out: str
    err: str


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one number a round; within a round the calls come one after another."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def run(command: Sequence[str | Path], *, codes: Sequence[int] = (0,), env: Mapping[str, str] | None = None) -> Child:
    """Run a process to its end, through ``child.py``, which measures it.

    Raises
    ------
    RuntimeError
        Where it ends with another exit code than `codes`.
    """
    arguments = [str(part) for part in command]
    done = subprocess.run(
        [sys.executable, "-S", str(HERE / "child.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
    )
    said = json.loads(done.stdout.splitlines()[-1])
    if said["code"] not in codes:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {said['code']}\n{done.stderr[-2000:]}")
    return Child(said["seconds"], said["peak"], said["own"], said["out"], done.stderr[-2000:])


def run_in_turn(commands: Mapping[str, Callable[[], Child]], rounds: int) -> dict[str, list[Child]]:
    """Run each process once a round, one after another."""
    children: dict[str, list[Child]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            children[name].append(command())
    return children
