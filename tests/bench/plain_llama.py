"""llama.cpp's plain run of some tokens: ``python plain_llama.py MODEL THREADS DECODE TOKEN...``."""

from __future__ import annotations

import sys
from pathlib import Path

from firstdiff.engines.llamacpp import LlamaCpp


def main(model: str, threads: str, decode: str, *tokens: str) -> None:
    """Run the tokens, and decode some more."""
    ids = [*map(int, tokens)]
    total = len(ids) + int(decode)
    with LlamaCpp(Path(model), threads=int(threads)) as engine, engine.context(total, len(ids), None) as run:
        logits = run.decode(ids, 0)
        for step in range(int(decode)):
            logits = run.decode([int(logits[-1].argmax())], len(ids) + step)


if __name__ == "__main__":
    main(*sys.argv[1:])
