"""What engines of other people that pip installs make of the suite: ``python tests/bench/public_engines.py``.

Each is installed into an environment of its own below ``.venv-public``, and driven by tests/engines/public_engine.py.
The table is kept in tests/data/public-engines.txt. A failure is listed with what was found to be its reason by other
means than the suite's: one that has none is said to be unconfirmed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is: more threads spin while they wait

from lines import printed
from public_findings import CONFIRMED

from firstdiff.conformance.definition import Level
from firstdiff.conformance.running import Conformance, Outcome, Result
from firstdiff.conformance.suite import suite
from firstdiff.conformance.telling import summed_up
from firstdiff.probing.engine import CommandEngine

ROOT = Path(__file__).parents[2]
ADAPTER = ROOT / "tests" / "engines" / "public_engine.py"
RUN_BY = "--model {model} --tokens {tokens} --logits {logits}"


HEADER = """\
Public engines on the core of the suite: `make bench-public`. On a failure's second line stands what was found to be its
reason without the suite, by reading the engine's source or what it reports, or by computing the same otherwise.
"""


@dataclass(frozen=True)
class Engine:
    """What is installed for an engine, and what its environment says."""

    packages: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


ENGINES = {
    "tinygrad": Engine(("tinygrad==0.13.0", "numpy"), (("DEV", "CPU"),)),  # compiles with clang
    "transformers": Engine(("transformers==5.24.0", "torch==2.13.0", "gguf==0.19.0", "accelerate", "numpy")),
    "convlit": Engine(("convlit==0.1.1", "torch==2.13.0", "numpy")),
    "ctransformers": Engine(("ctransformers==0.2.27", "numpy")),
}


def python_of(name: str) -> Path:
    """An engine's environment, made where there is none."""
    folder = ROOT / ".venv-public" / name
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *ENGINES[name].packages], check=True)
    return python


def told(name: str, results: list[Result]) -> Iterator[str]:
    """The sum, and each failure with what explains it and what was confirmed."""
    yield f"{name} ({ENGINES[name].packages[0].replace('==', ' ')}): {summed_up(results)}"
    yield "    refused: " + ", ".join(r.test.name for r in results if r.outcome is Outcome.REFUSED)
    for r in results:
        if r.outcome is Outcome.FAILED:
            measured = f"error {r.error:.2g}, floor {r.floor:.2g}: " if r.error is not None else ""
            yield f"    {r.test.name}: {measured}{r.says}"[:160]
            found = next(
                (says for pattern, says in CONFIRMED[name].items() if re.fullmatch(pattern, r.test.name)), None
            )
            yield f"        {found or 'UNCONFIRMED'}"


def table(names: Iterable[str], level: Level) -> Iterator[str]:
    """What each engine makes of the suite, line by line."""
    yield from [*HEADER.splitlines(), ""]
    for name in names:
        os.environ.update(ENGINES[name].environment)
        command = f"{shlex.quote(str(python_of(name)))} {shlex.quote(str(ADAPTER))} {name} {RUN_BY}"
        with tempfile.TemporaryDirectory() as folder:
            running = Conformance(CommandEngine.of(command, folder, 300.0), Path(folder), budget=5.0)
            yield from told(name, running.run(suite(level)))


def main() -> int:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser("public_engines", description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, action="append")
    parser.add_argument("--level", choices=("core", "full"), default="core")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    printed(((line, 0) for line in table(options.engine or ENGINES, options.level)), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
