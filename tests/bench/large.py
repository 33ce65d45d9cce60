"""Large models and long prompts beside llama.cpp's plain run of the same tokens: `python tests/bench/large.py`.

A dense model of 8 billion parameters in Q4_K, a mixture of experts with the shape of 30 billion and four layers, and
2,048 tokens on SmolLM2. The models are written into a folder first, 6 GB, and kept there if it is given. With
``--history FILE`` a line is added to the file: commit, day, and each ratio.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from figures import Aim, Figure
from large_models import eight_billion, experts
from measurements import COMMAND
from rich.console import Console
from table import table
from timing import HERE, ONE_THREAD, Child, run, run_in_turn

from firstdiff.model.workers import physical_cores
from firstdiff.runs.demo import smollm2
from firstdiff.verdict.provenance import own_version

SHORT = tuple(range(300, 333))
LONG = tuple(300 + 7919 * i % 20000 for i in range(2048))
OWN = Aim("≤ 1.5 GB", 1.5e9, of_ratio=False)


def plain(model: Path, tokens: Sequence[int], decode: int) -> Callable[[], Child]:
    """llama.cpp's plain run as a process: nothing recorded, nothing judged."""
    command = [sys.executable, HERE / "plain_llama.py", model, str(physical_cores()), str(decode)]
    return lambda: run([*command, *map(str, tokens)])


def firstdiff(*arguments: str | Path) -> Callable[[], Child]:
    """The command as a call; a divergence is a verdict too."""
    return lambda: run([COMMAND, *arguments], codes=(0, 1), env=ONE_THREAD)


def judged(model: Path, tokens: Sequence[int], decode: int, out: Path) -> Callable[[], Child]:
    """``firstdiff run MODEL``: llama.cpp recorded and judged."""
    ids = ",".join(map(str, tokens))
    return firstdiff("run", model, "--tokens", ids, "--decode", str(decode), "--out", out)


def beside_llama(name: str, calls: dict[str, Callable[[], Child]], rounds: int, aim: Aim | None) -> list[Figure]:
    """A run beside llama.cpp's plain one, and the memory that is its own."""
    children = run_in_turn(calls, rounds)
    ours, theirs = (children[which] for which in ("ours", "plain"))
    seconds = [[c.seconds for c in of] for of in (ours, theirs)]
    own = [[float(c.own) for c in of] for of in (ours, theirs)]
    return [
        Figure(name, seconds[0], "s", "llama.cpp's plain run", seconds[1], aim),
        Figure("  its own memory at most", own[0], "B", "llama.cpp's plain run", own[1], OWN if aim else None),
    ]


def dense(folder: Path, out: Path, rounds: int) -> list[Figure]:
    """The dense model: llama.cpp, right and wrong candidates, one job and two."""
    model = eight_billion(folder)
    run([sys.executable, HERE / "wrong_at_every_layer.py", model, out, *map(str, SHORT)], env=ONE_THREAD)
    calls = {"plain": plain(model, SHORT, 1), "ours": judged(model, SHORT, 1, out / "run")}
    calls["ours"]()  # warm: compiled, the digest kept, the file in memory
    figures = beside_llama("llama.cpp judged, 33 tokens + 1 step", calls, rounds, Aim("≤ 3×", 3))
    calls |= {"ours": firstdiff("run", model, "--candidate", out / "right", "--out", out / "of-right")}
    figures += beside_llama("a right candidate, all points", calls, rounds, None)
    wrong = firstdiff("run", model, "--candidate", out / "wrong", "--out", out / "of-wrong")
    children = run_in_turn({"right": calls["ours"], "wrong": wrong}, max(1, rounds // 2))
    more = [b.seconds - a.seconds for a, b in zip(children["right"], children["wrong"], strict=True)]
    figures.append(
        Figure("what nothing explains at every layer: more", more, "s", aim=Aim("≤ 60 s", 60, of_ratio=False))
    )
    trace = out / "run" / "llama.cpp"
    jobs = {str(n): firstdiff("explain", trace, "--model", model, "--jobs", str(n)) for n in (1, 2)}
    children = run_in_turn(jobs, rounds)
    one, two = ([c.seconds for c in children[name]] for name in ("1", "2"))
    aim = Aim("≥ 1.7×", 1.7, at_least=True)
    return [*figures, Figure("its trace judged with two jobs", two, "s", "with one", one, aim, faster=True)]


def mixture(folder: Path, out: Path, rounds: int) -> list[Figure]:
    """The mixture of experts: node by node, and a recorded trace of it by the graph."""
    model = experts(folder)
    calls = {"plain": plain(model, SHORT, 1), "ours": judged(model, SHORT, 1, out / "run-experts")}
    figures = beside_llama("llama.cpp judged node by node, 33 tokens + 1 step", calls, rounds, None)
    run([COMMAND, "record", model, "--tokens", ",".join(map(str, SHORT)), "--decode", "1", "--out", out / "experts"])
    calls |= {"ours": firstdiff("run", model, "--candidate", out / "experts", "--out", out / "of-experts")}
    return [*figures, *beside_llama("its trace as a candidate, by the graph", calls, rounds, None)]


def long(model: Path, out: Path, rounds: int) -> list[Figure]:
    """A long prompt on SmolLM2."""
    calls = {"plain": plain(model, LONG, 0), "ours": judged(model, LONG, 0, out / "run-long")}
    return beside_llama("llama.cpp judged, 2,048 tokens", calls, rounds, Aim("≤ 3×", 3))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, add to the history, and return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="folder that the models are written into and kept in")
    parser.add_argument("--history", type=Path, help="file that a line is added to")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    with tempfile.TemporaryDirectory() as name:
        folder = options.models or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        groups = {
            "8 billion parameters, Q4_K": dense(folder, Path(name), options.rounds),
            "Experts, 30 billion parameters' shape, 4 layers, Q4_K": mixture(folder, Path(name), options.rounds),
        }
        if (small := smollm2()) is not None:
            groups["SmolLM2-135M, a long prompt"] = long(small, Path(name), options.rounds)
    for title, figures in groups.items():
        console.print(table(title, figures), "")
    if options.history is not None:
        with options.history.open("a", encoding="utf-8") as file:
            file.write(line([f for figures in groups.values() for f in figures]) + "\n")
    return 0


def line(figures: Sequence[Figure]) -> str:
    """A line of the history."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    told = [f"{f.name.strip()}: {median(f.ratios):.2f}×" for f in figures if f.ratios]
    told += [f"{f.name.strip()}: {median(f.ours):.0f} s" for f in figures if not f.ratios and f.unit == "s"]
    return f"{own_version()} {commit.strip()} {time.strftime('%Y-%m-%d')} | " + "; ".join(told)


if __name__ == "__main__":
    sys.exit(main())
