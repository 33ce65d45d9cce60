"""With how many threads llama.cpp computes."""

from __future__ import annotations

from pathlib import Path

from firstdiff.model.workers import physical_cores

MOST_THREADS = 512  # GGML_MAX_N_THREADS: far above it llama.cpp crashes


SMALL = 1 << 30  # bytes of a model that is run with one thread


def threads_for(model: Path | None, asked: int | None = None, *, jobs: int = 1) -> int:
    """Threads of llama.cpp, where as many `jobs` run side by side.

    A small model gains less from a second one than waiting for it costs on a busy machine.
    """
    if asked:
        return asked
    small = model is None or not model.exists() or model.stat().st_size < SMALL
    return 1 if small else min(max(1, physical_cores() // jobs), MOST_THREADS)
