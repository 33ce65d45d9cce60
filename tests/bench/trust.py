"""Whether the tool can be trusted: ``python tests/bench/trust.py`` (``make bench-trust``).

Dumps of right engines of many kinds are judged, the same dumps with one fault each, and dumps that are faulty
themselves, and each verdict is held against what is true. The tables of parts are kept in tests/data/trust-PART.txt
(``--part PART --out FILE``). The exit code is 1 where one of `LIMITS` is broken. Each failure has a line, and
``--only`` with its name judges that dump again and shows the report.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # read where numpy and torch are imported

from trust_dumps import Garden
from trust_judging import Outcome
from trust_parts import COUNTS, PARTS
from trust_table import broken, failure, table, told

from firstdiff.reports.terminal import render


def work(job: tuple[Garden, str, int]) -> Outcome:
    """Make one dump, judge it, and hold the verdict against the truth."""
    garden, part, seed = job
    try:
        return replace(PARTS[part](garden, seed), verdict=None)
    except Exception as e:
        raise RuntimeError(f"--part {part} --only {seed} cannot be made: {type(e).__name__}: {e}") from e


def all_of(todo: Sequence[tuple[Garden, str, int]], processes: int) -> Iterator[Outcome]:
    """The outcomes in order, each as soon as it and those before it are there."""
    if processes == 1:
        yield from map(work, todo)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, todo)


def shown(garden: Garden, part: str, seed: int) -> Iterator[str]:
    """Everything about one dump."""
    outcome = PARTS[part](garden, seed)
    yield f"{outcome.kind}; {told(outcome.recipe)}"
    yield f"failed: {', '.join(outcome.failed) or 'nothing'} {outcome.detail}"
    yield "no verdict" if outcome.verdict is None else render(outcome.verdict, width=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the dumps, print the table, write it where asked, and say by the exit code whether a limit is broken."""
    parser = argparse.ArgumentParser("trust", description=__doc__)
    parser.add_argument("--part", choices=PARTS, help="only one")
    parser.add_argument("--count", type=int, help="how many dumps of each part")
    parser.add_argument("--start", type=int, default=0, help="the number of the first")
    parser.add_argument("--only", type=int, metavar="SEED", help="one dump of a part, with the report on it")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        garden = Garden(Path(name))
        garden.plant()
        if options.only is not None:
            sys.stdout.writelines(f"{line}\n" for line in shown(garden, options.part or "clean", options.only))
            return 0
        todo = [
            (garden, part, options.start + number)
            for part in ([options.part] if options.part else PARTS)
            for number in range(options.count or COUNTS[part])
        ]
        outcomes, text = [], ""
        for outcome in all_of(todo, options.processes):
            outcomes.append(outcome)
            sys.stderr.writelines(f"{line}\n" for line in failure(outcome))
            if len(outcomes) % 100 == 0 or len(outcomes) == len(todo):
                seconds = time.perf_counter() - start
                text = "".join(f"{line}\n" for line in table(outcomes, seconds))
                sys.stderr.write(f"{len(outcomes)} of {len(todo)} after {seconds:.0f} s\n")
                if options.out:  # a run that is interrupted leaves the table of what it has judged
                    options.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 1 if broken(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
