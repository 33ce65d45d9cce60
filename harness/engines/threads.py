"""With how many threads llama.cpp computes."""

from __future__ import annotations

import os
from pathlib import Path

MOST_THREADS = 512  # GGML_MAX_N_THREADS: far above it llama.cpp crashes


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once where Linux tells them apart."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            return len(allowed)
    return len(siblings)


SMALL = 1 << 30  # bytes of a model that is run with one thread


def threads_for(model: Path | None, asked: int | None = None, *, jobs: int = 1) -> int:
    """Threads of llama.cpp, where as many `jobs` run side by side.

    A small model gains less from a second one than waiting for it costs on a busy machine.
    """
    if asked:
        return asked
    small = model is None or not model.exists() or model.stat().st_size < SMALL
    return 1 if small else min(max(1, physical_cores() // jobs), MOST_THREADS)
