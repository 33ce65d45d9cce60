"""How fast blocks become float32, beside the `gguf` package: ``python tests/bench/quants.py``."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass

import gguf
import numpy as np

from firstdiff.model import quants

ELEMENTS = 16 << 20  # 64 MiB of float32: far larger than the caches
ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Rates:
    """GB/s of float32 written, one number a round."""

    name: str
    fresh: list[float]  # into an array that the call allocates, as gguf does
    reused: list[float]  # into an array given with `out`
    gguf: list[float]


def measure(name: str, *, elements: int = ELEMENTS, rounds: int = ROUNDS) -> Rates:
    """Run ours and gguf's in turn on the same random blocks of one type."""
    kind = quants.BY_NAME[name]
    size = elements // kind.block * kind.nbytes
    raw = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    out = np.zeros(elements, np.float32)
    gguf_type = gguf.GGMLQuantizationType[name]
    calls = {
        "fresh": lambda: quants.dequantize(raw, kind),
        "reused": lambda: quants.dequantize(raw, kind, out),
        "gguf": lambda: gguf.dequantize(raw, gguf_type),
    }
    rates: dict[str, list[float]] = {which: [] for which in calls}
    with np.errstate(all="ignore"):  # random scales overflow
        calls["reused"]()  # compiles
        for _ in range(rounds):
            for which, call in calls.items():
                start = time.perf_counter()
                call()
                rates[which].append(4e-9 * elements / (time.perf_counter() - start))
    return Rates(name, **rates)


def measure_all(*, rounds: int = ROUNDS) -> list[Rates]:
    # F32 is left out: it is a view, and takes no time.
    return [measure(name, rounds=rounds) for name in quants.BY_NAME if name in quants.SUPPORTED - {"F32"}]


def bench() -> list[tuple[str, float, float, float]]:
    """Return, for each type, the medians of ours and gguf's in GB/s, both allocating, and their ratio."""
    medians = [(rates.name, statistics.median(rates.fresh), statistics.median(rates.gguf)) for rates in measure_all()]
    return [(name, ours, theirs, ours / theirs) for name, ours, theirs in medians]


def main() -> None:
    row = "{:<6} {:>18} {:>18} {:>18} {:>12} {:>12}\n"
    sys.stdout.write(
        row.format("type", "ours, fresh", "ours, out=", "gguf", "fresh/gguf", "out=/gguf")
        + row.format("", *["median (min-max)"] * 3, "medians", "medians"),
    )
    for rates in measure_all():
        columns = [rates.fresh, rates.reused, rates.gguf]
        fresh, reused, theirs = (statistics.median(column) for column in columns)
        spans = [f"{statistics.median(c):.2f} ({min(c):.2f}-{max(c):.2f})" for c in columns]
        sys.stdout.write(row.format(rates.name, *spans, f"{fresh / theirs:.1f}", f"{reused / theirs:.1f}"))


if __name__ == "__main__":
    main()
