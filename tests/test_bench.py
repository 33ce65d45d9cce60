"""The benchmarks run: their figures are for people, that they come out is for us."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

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


def run_trust(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH / "trust.py", "--processes", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.llama
@pytest.mark.torch
@pytest.mark.parametrize("seed", [7, 11])  # llama.cpp, two layers of four recorded; the reference, all of them
def test_dumps_of_right_engines_are_judged_against_what_is_true(tmp_path: Path, seed: int) -> None:
    done = run_trust("--part", "clean", "--start", seed, "--count", 1, "--out", tmp_path / "table")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (tmp_path / "table").read_text()
    assert "Dumps of right engines: 1\n" in done.stdout
    assert "BROKEN" not in done.stdout


@pytest.mark.llama
@pytest.mark.torch
def test_a_fault_is_planted_in_a_dump_and_the_verdict_held_against_it() -> None:
    done = run_trust("--part", "faults", "--start", 1, "--count", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"the first site is right +1 of 1 ", done.stdout)
    assert re.search(r"the right cause is claimed +1 of 1 ", done.stdout)


@dataclass(frozen=True, slots=True)
class Bench:
    """The parts of the bench of trust, and the models that their dumps are made with."""

    parts: Mapping[str, Callable[[object, int], Any]]
    garden: object


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCH)
        from trust_dumps import Garden
        from trust_parts import PARTS

        garden = Garden(tmp_path_factory.mktemp("garden"))
        garden.plant()
        yield Bench(PARTS, garden)


ONCE_WRONG = [
    ("clean", 137),  # a cache in q8_0 whose past is not in the dump
    ("clean", 162),  # weights held in bf16, stored in f16: operands rounded to bf16 fit the wide floor too
    ("clean", 166),  # int8 by row: rows by which two ways of making codes are told apart, whose sums cancel
    ("clean", 365),  # weights held in fp8, and attention of an arithmetic that nobody knows
    ("clean", 507),  # outputs of layers alone, of weights held in bf16
    ("clean", 639),  # the same as 1001, in a dump of the last token's row
    ("clean", 1983),  # outputs of layers alone, of weights held in int8, with operands in tf32
    ("clean", 1001),  # operands in f16, which part from those in tf32 in a later step only
    ("clean", 1229),  # a cache in f16, and its new entries recorded of the last token alone
    ("faults", 9),  # operands and dump in f16, and no other result: gates too small for it
    ("faults", 13),  # a layer of wrong products beside weights held in int8, which the trace does not state
    ("faults", 30),  # a layer of zeros, which fit any layout of the scores
    ("faults", 32),  # a fused product that is wrong at every layer: what comes of it tells how its parts lie
    ("faults", 66),  # outputs of layers alone, of weights held in fp8, one of them wrong
    ("faults", 80),  # products that are wrong at every layer, in Hugging Face's order, and a prompt of one token
    ("faults", 164),  # operands in f16 that part from those in tf32, and a rope base
    ("faults", 208),  # products that are wrong at every layer, on tensor cores
    ("faults", 233),  # an offset of positions, and the last token's row alone
    ("faults", 238),  # scores masked by the least number, stored in f16
    ("faults", 601),  # int8 weights below the floor of results in bf16
    ("faults", 690),  # products of Q and K that are wrong at every layer, and one position: any order turns alike
    ("faults", 915),  # a layer of wrong products, of results in f16
    ("faults", 969),  # products that are NaN in part, and rows of zeros behind the tokens
    ("faults", 985),  # a layer of zeros, and scores in bf16 that were scaled since
    ("faults", 1113),  # operands in tf32 that are taken for f16's: products and attention part from them together
    ("faults", 1175),  # the wrong rows of an embedding that is held in bf16
    ("faults", 1243),  # one right layer of two, with operands in bf16 and weights held in f16
    ("faults", 1286),  # a norm that overflows, and more rows than tokens: as many as the sequence has by then
    ("faults", 1368),  # scores that were scaled, and beyond the range of f16
    ("faults", 1398),  # operands in tf32 that are taken for f16's, and a wrong layer
    ("faults", 1448),  # zeros everywhere: they repeat nothing
    ("faults", 1471),  # norms that are wrong everywhere: biases tell what they are held in
    ("faults", 1502),  # one right layer of two, whose scores were scaled
    ("faults", 1916),  # nibbles exchanged everywhere: of two ways to round to eleven bits, the fault tells
    ("faults", 997),  # a softmax in f16 over the other axis, whose sums are rounded the other way here and there
    ("faults", 1996),  # a fault of all products, in f16 operands at steps of one token: one cause, and not a pair
    ("faults", 2060),  # a mean over all tokens, of which one is recorded: a cause that fits one layer is a chance
    ("faults", 2117),  # one token, and products that are wrong everywhere: the order of rows is no fault
    ("faults", 2218),  # one right layer of two, operands in bf16, stored in f16
    ("dump", 33),  # a step that repeats another, behind which the fault was not recorded
    ("dump", 79),  # one right layer of four, with weights held in f16, which the trace does not state
    ("dump", 151),  # rows missing at the end, and the embedding of other tokens: positions tell
    ("dump", 277),  # a wrong sum among those of which the dump holds the norm
    ("faults", 1678),  # an epsilon that is right at all layers but one, with weights held in bf16
    ("faults", 2573),  # a layer computed as ggml does, whose floor is so wide that the right ones are below it
    ("faults", 2547),  # a wrong minimum everywhere: four products of a type without one tell what weights are held in
    ("faults", 1884),  # inputs exchanged everywhere: one right softmax tells that the scores were scaled
    ("faults", 2502),  # inputs exchanged everywhere, in weights held in fp8 and operands in tf32
    ("faults", 1758),  # a wrong norm whose fused products took the wrong input: nothing that follows used the right one
    ("faults", 1498),  # a norm's weight read from another place, and the last token's row alone
    ("faults", 145),  # a sink in one layer, and operands in bf16 that outputs of layers hardly show
    ("faults", 434),  # a fused product that is NaN for the most part, and what other weights are held in
    ("faults", 263),  # logits that are nearly zero, which ggml's codes make zero
    ("faults", 623),  # half of the norms wrong: the right ones tell what they are held in
    ("faults", 1197),  # operands in f16 that are taken for tf32's, beside a wrong layer
    ("faults", 1377),  # a fault below the floor of operands in bf16, which only one of two products of attention shows
    ("faults", 2774),  # scores that are zero in one of two layers: their probabilities fit scaled ones too
    ("faults", 2155),  # rows of zeros behind rows that are NaN for the most part
    ("faults", 432),  # a softmax without its scale, which a factor on cos and sin gives too
    ("faults", 2420),  # a wrong layer of two, and another arithmetic in steps of one token
    ("faults", 159),  # a fault in rows that a dump of the last row lacks, which shows in the next layer's scores
    ("faults", 2402),  # operands in f16 or tf32 of one token, and faulty at every layer that could tell which
    ("faults", 1490),  # rows of an embedding that fit different arithmetics: an error ended the verdict
    ("faults", 674),  # 1 added to a norm's weight before it was rounded to bf16
    ("faults", 2900),  # a norm's weight read from another place, in an engine that holds weights in bf16
]
"""Dumps of the bench of trust that were read wrongly once."""


@pytest.mark.sweep
@pytest.mark.llama
@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize(("part", "seed"), ONCE_WRONG)
def test_a_dump_that_was_read_wrongly_once_is_read_rightly(part: str, seed: int, bench: Bench) -> None:
    outcome = bench.parts[part](bench.garden, seed)
    assert not outcome.failed, outcome.detail


@pytest.mark.llama
@pytest.mark.torch
def test_every_pair_of_values_of_two_dimensions_that_can_be_is_among_the_dumps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    from trust_draws import DIMENSIONS, allowed, covering

    dumps = covering()
    assert all(allowed(dump) and list(dump) == list(DIMENSIONS) for dump in dumps)
    seen = {pair for dump in dumps for pair in combinations(dump.items(), 2)}
    wanted = {((a, x), (b, y)) for a, b in combinations(DIMENSIONS, 2) for x in DIMENSIONS[a] for y in DIMENSIONS[b]}
    missing = {pair for pair in wanted - seen if allowed(dict(pair))}
    assert all({a, b} <= {"engine", "compute", "stated", "model", "order", "prompt"} for (a, _), (b, _) in missing)


@pytest.mark.llama
@pytest.mark.torch
def test_a_limit_of_the_bench_of_trust_that_is_broken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    from trust_judging import Outcome
    from trust_table import broken, table

    right = Outcome("clean", 0, "C", {"model": "a"}, (), "", 0.1)
    accused = replace(right, seed=1, failed=("diverges",), detail="diverges: Qcur-0")
    named = replace(right, part="faults", seen=True, site=True, right=True)
    unnamed = replace(named, right=False)
    assert not broken([right] * 99 + [named] * 9 + [unnamed])
    assert [limit.says for limit in broken([right] * 99 + [accused])] == ["a site diverges"]
    assert [limit.says for limit in broken([named] * 8 + [unnamed])] == ["the right cause is claimed"]
    assert "    --part clean --only 1: diverges: Qcur-0 (0.1 s)" in list(table([right, accused], 1.0))
