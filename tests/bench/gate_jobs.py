"""How much faster a gate is with several jobs: ``python tests/bench/gate_jobs.py [--cases 200] [--jobs 2]``.

A right trace of a tiny model is judged as many times as there are cases, by one job and by several in turn; the least
time of three counts, start-up included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

from builders.engines import recorded_by_reference
from builders.models import TINY, synthetic

REPEATS = 3


def seconds(folder: Path, *options: str) -> float:
    """How long a gate takes."""
    start = time.perf_counter()
    gate = [sys.executable, "-m", "firstdiff", "gate", "--out", f"out-{time.time_ns()}", *options]
    subprocess.run(gate, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print the times and their ratio."""
    parser = argparse.ArgumentParser("gate_jobs", description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorded_by_reference(synthetic(folder / "tiny.gguf", TINY), folder / "right")
        cases = "".join(f'case-{i} = "right"\n' for i in range(options.cases))
        (folder / "firstdiff.toml").write_text(f'[models]\ntiny = "tiny.gguf"\n[traces]\n{cases}')
        seconds(folder, "--force-regen")
        times = [(seconds(folder), seconds(folder, "--jobs", str(options.jobs))) for _ in range(REPEATS)]
    one, several = (min(column) for column in zip(*times, strict=True))
    sys.stdout.write(
        f"{options.cases} cases: 1 job {one:.1f} s, {options.jobs} jobs {several:.1f} s: "
        f"{one / several:.2f} times as fast\n"
    )


if __name__ == "__main__":
    main()
