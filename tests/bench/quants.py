"""How fast blocks become float32, beside the `gguf` package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
from timing import in_turn

from firstdiff.model import quants
from firstdiff.model.weights import CHUNK

ELEMENTS = 16 << 20  # 64 MiB of float32: far larger than the caches


@dataclass(frozen=True, slots=True)
class Rates:
    """GB/s of float32 written, one number a round, on one thread each."""

    name: str
    ours: list[float]  # in runs of the engine's own size, all into one buffer
    whole: list[float]  # gguf's, in one call, which allocates
    runs: list[float]  # gguf's, in the same runs as ours: each then stays in the caches


def measure(name: str, *, rounds: int) -> Rates:
    """Run ours and gguf's in turn over the same random blocks."""
    kind = quants.BY_NAME[name]
    raw = np.random.default_rng(0).integers(0, 256, ELEMENTS // kind.block * kind.nbytes, dtype=np.uint8)
    step = CHUNK // kind.block * kind.nbytes
    chunks = [raw[start : start + step] for start in range(0, raw.size, step)]
    out, gguf_type = np.zeros(CHUNK, np.float32), gguf.GGMLQuantizationType[name]
    calls = {
        "ours": over(chunks, lambda chunk: quants.dequantize(chunk, kind, out)),
        "whole": lambda: gguf.dequantize(raw, gguf_type),
        "runs": over(chunks, lambda chunk: gguf.dequantize(chunk, gguf_type)),
    }
    with np.errstate(all="ignore"):  # random scales overflow
        calls["ours"]()  # compiles
        seconds = in_turn(calls, rounds)
    return Rates(name, **{which: [4e-9 * ELEMENTS / s for s in of] for which, of in seconds.items()})


def over(chunks: list[np.ndarray[tuple[int], np.dtype[np.uint8]]], call: Callable[..., object]) -> Callable[[], None]:
    """Return one call for all chunks."""

    def each() -> None:
        for chunk in chunks:
            call(chunk)

    return each


def measure_all(*, rounds: int) -> list[Rates]:
    # F32 is left out: it is a view, and takes no time; and what gguf does not know.
    left_out = {"F32", "Q1_0", "Q2_0"}
    return [measure(name, rounds=rounds) for name in quants.BY_NAME if name in quants.SUPPORTED - left_out]
