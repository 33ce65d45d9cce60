"""With how many threads llama.cpp computes."""

from __future__ import annotations

from pathlib import Path

from firstdiff.model.workers import physical_cores

MOST_THREADS = 512  # GGML_MAX_N_THREADS: far above it llama.cpp crashes


SMALL = 1 << 30  # bytes of a model that is run with one thread


LONG = 1 << 36  # bytes of a model times tokens of a step, from which it is not small


def threads_for(model: Path | None, asked: int | None = None, *, jobs: int = 1, tokens: int = 1) -> int:
    """Threads of llama.cpp, where as many `jobs` run side by side, for steps of so many `tokens`.

    A small model gains less from a second one than waiting for it costs on a busy machine, but with a long prompt.
    """
    if asked:
        return asked
    size = model.stat().st_size if model is not None and model.exists() else 0
    small = size < SMALL and size * tokens < LONG
    return 1 if small else min(max(1, physical_cores() // jobs), MOST_THREADS)
