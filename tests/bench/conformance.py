"""Which tests of the suite each bug of the C engine fails: ``python tests/bench/conformance.py``.

The matrix is kept in tests/data/conformance.txt. ``--engine NAME`` runs another engine through the whole suite:
llama.cpp, transformers or transformers-bf16.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

from lines import printed

from builders.engines import SOURCE, compile_engine
from firstdiff.conformance.running import Conformance, Outcome, Result
from firstdiff.conformance.suite import suite
from firstdiff.conformance.telling import lines, summed_up
from firstdiff.probing.engine import CommandEngine

RUN_BY = "--model {model} --tokens {tokens} --logits {logits} --parts {parts}"
BLACK_BOX = Path(__file__).parents[1] / "engines" / "black_box.py"


FEW = 6
"""Failures of one bug that are told one by one."""


def bugs() -> list[str]:
    """The bugs that the table at the top of the C engine lists."""
    head = SOURCE.read_text().partition("*/")[0]
    return [name.replace("_", "-") for name in re.findall(r"^ \*     ([a-z]\w+) {2,}", head, re.MULTILINE)[1:]]


def results_of(command: str, folder: Path, *, budget: float = 20.0) -> tuple[list[Result], str | None]:
    """What an engine makes of the whole suite."""
    running = Conformance(CommandEngine.of(command, str(folder), 60.0), folder, budget=budget)
    return running.run(suite("full")), running.arithmetic


def matrix(folder: Path) -> Iterator[str]:
    """For each bug the tests that fail, and what explains each."""
    for bug in (None, *bugs()):
        engine = compile_engine(folder, bug, None)
        results, _ = results_of(f"{shlex.quote(str(engine))} {RUN_BY}", folder)
        failed = [r for r in results if r.outcome is Outcome.FAILED]
        yield f"{bug or 'no bug'}: {summed_up(results)}"
        for r in failed[: None if len(failed) <= FEW else 1]:
            yield f"    {r.test.name}: {r.says}"[:160]
        if len(failed) > FEW:
            yield f"    and {len(failed) - 1} more"


def main() -> int:
    """Print the matrix, or one engine's results, and write them where asked."""
    parser = argparse.ArgumentParser("conformance", description=__doc__)
    parser.add_argument("--engine", choices=("llama.cpp", "transformers", "transformers-bf16"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.engine is None:
            made = matrix(Path(name))
        else:
            command = f"{shlex.quote(sys.executable)} {shlex.quote(str(BLACK_BOX))} {options.engine} {RUN_BY}"
            made = lines(*results_of(command, Path(name)), width=160)
        printed(((line, 0) for line in made), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
