"""The benchmarks run: their figures are for people, that they come out is for us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from planted import synthetic

BENCH = Path(__file__).parent / "bench"


def test_recording_and_replay_are_timed_on_one_core(tmp_path: Path) -> None:
    model = synthetic(tmp_path, n_layer=2)
    done = subprocess.run(
        [sys.executable, BENCH / "one_core.py", model, "1"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures


def test_every_module_of_the_benchmarks_can_be_imported() -> None:
    modules = [
        path.stem for path in BENCH.glob("*.py") if path.stem not in ("__main__", "child", "hooked_transformers")
    ]
    subprocess.run([sys.executable, "-c", f"import {', '.join(modules)}"], check=True, cwd=BENCH)
