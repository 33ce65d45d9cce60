"""How long the plot of one site takes: the first of a trace, and another one."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for builders

from figures import Aim, Figure
from models import Subject

import firstdiff as fd
from builders.relaid import LAYOUTS, relaid
from firstdiff.dumps import Trace

TOKENS = (1, *range(300, 339))
SITE, OTHER = "Kcur_rope-15", "ffn_gate-7"
SECOND = Aim("≤ 1 s", 1, of_ratio=False)


def one_site(subject: Subject, folder: Path, rounds: int) -> list[Figure]:
    """Measure ``fd.plot.positions`` on llama.cpp's trace, and on one laid out as transformers' that states nothing."""
    stated = fd.record(subject.path, tokens=TOKENS, decode=4, out=folder / "site")
    foreign = replace(relaid(stated, LAYOUTS["as transformers has it"]), engine={"name": "unknown"})
    figures = []
    for name, trace in (("llama.cpp's trace", stated), ("a foreign dump", foreign)):
        plots = [seconds(subject, trace) for _ in range(rounds + 1)][1:]  # compiled, and the file in memory
        first, other = zip(*plots, strict=True)
        figures.append(Figure(f"one site's plot, of {name}", first, "s", aim=SECOND))
        figures.append(Figure("  another site of it", other, "s"))
    return figures


def seconds(subject: Subject, trace: Trace) -> tuple[float, float]:
    """Seconds of the first plot of a trace, and of the next."""
    new, times = replace(trace), []  # nothing is kept of it
    for site in (SITE, OTHER):
        start = time.perf_counter()
        fd.plot.positions(new, site, subject.path)
        times.append(time.perf_counter() - start)
    return times[0], times[1]
