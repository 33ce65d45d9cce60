"""The benchmarks run: their figures are for people, that they come out is for us."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from builders.models import synthetic

BENCH = Path(__file__).parent / "bench"


@pytest.mark.llama
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


@pytest.mark.slow
def test_every_module_of_the_benchmarks_can_be_imported() -> None:
    modules = [
        path.stem for path in BENCH.glob("*.py") if path.stem not in ("__main__", "child", "hooked_transformers")
    ]
    subprocess.run([sys.executable, "-c", f"import {', '.join(modules)}"], check=True, cwd=BENCH)


def run_bench(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / script, "--quick", *map(str, arguments)]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.mark.llama
def test_clean_engines_raise_no_false_alarm(tmp_path: Path) -> None:
    done = run_bench("false_alarms.py", "--out", tmp_path / "table")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (tmp_path / "table").read_text()
    count = re.fullmatch(r"(\d+) clean sites judged, \1 of them with nothing stated too; 0 false alarms", last(done))
    assert count is not None
    assert int(count[1]) == (2 * 41 + 37) * 2 * 3  # llama.cpp and the C engine, flash attention; 2 steps, 3 prompts


@pytest.mark.llama
def test_an_engine_with_a_bug_is_no_clean_one() -> None:
    done = run_bench("false_alarms.py", "--bug", "norm-eps")
    assert done.returncode == 1
    assert "false alarm: attn_norm-0 of a prompt of 1: 0.000542 over 1.12e-06, segment none" in done.stdout
    assert last(done).endswith("; 60 false alarms")


@pytest.mark.llama
def test_the_smallest_changes_seen_are_near_the_floor(tmp_path: Path) -> None:
    done = run_bench("sensitivity.py", "--out", tmp_path / "table")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "table").read_text()
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("f32 "))
    eps, base, scale, element = ((float(x), float(y)) for x, y in re.findall(r"(\S+) \(floor +(\S+)\)", line))
    assert eps[0] * 1e-5 < 4 * eps[1]  # half of what is added to a mean square near 1
    for share, floor in (base, scale):
        assert floor / 4 < share < 4 * floor
    assert floor < element[0] < 1e-3


def last(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.splitlines()[-1]
