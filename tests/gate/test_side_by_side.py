"""Cases of a gate side by side: the same comes out, and nothing is lost where a process ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.command_line import assert_refused
from builders.gate import Repository
from builders.processes import refused, squared, squared_or_ended
from firstdiff.gate.side_by_side import side_by_side


def many(repository: Repository, count: int = 4) -> None:
    """Several cases: the trace that is right, and one with a fault."""
    for i in range(count):
        Path(f"trace-{i}").symlink_to(repository.kept / ("wrong" if i == 1 else "right"))
    traces = "".join(f'case-{i} = "trace-{i}"\n' for i in range(count))
    repository.config(f'[models]\ntiny = "tiny.gguf"\n[traces]\n{traces}')


def kept(repository: Repository) -> dict[str, dict[str, object]]:
    """What each case was found to be, without what names the run's folder."""
    cases = json.loads((repository.out / "gate.json").read_text())["cases"]
    return {name: {k: v for k, v in case.items() if "out-" not in str(v)} for name, case in cases.items()}


def test_every_result_comes_once() -> None:
    assert sorted(side_by_side(range(7), squared, 3)) == [(n, n * n) for n in range(7)]


def test_a_process_that_ends_costs_its_own_case_alone() -> None:
    found = dict(side_by_side(range(9), squared_or_ended, 3))
    assert found == {n: None if n in (3, 5) else n * n for n in range(9)}


def test_an_error_that_nobody_foresaw_is_raised() -> None:
    with pytest.raises(ValueError, match="no two"):
        list(side_by_side(range(5), refused, 2))


def test_the_same_comes_out_of_one_job_and_of_two(repository: Repository) -> None:
    many(repository)
    first = repository.gate("--force-regen")
    alone, baselines = kept(repository), {p.name: p.read_bytes() for p in Path("firstdiff-baseline/tiny").iterdir()}
    second = repository.gate("--force-regen", "--jobs", "2")
    assert first.code == second.code == 1
    assert list(kept(repository)) == [f"tiny/case-{i}" for i in range(4)]
    assert kept(repository) == alone
    assert {p.name: p.read_bytes() for p in Path("firstdiff-baseline/tiny").iterdir()} == baselines
    assert (repository.out / "tiny/case-1/report.html").exists()


def test_parts_hold_each_case_once(repository: Repository) -> None:
    many(repository)
    found: list[str] = []
    for part in (1, 2, 3):
        repository.gate("--shard", f"{part}/3")
        found += kept(repository)
    assert sorted(found) == [f"tiny/case-{i}" for i in range(4)]


def test_a_part_without_a_case_passes(repository: Repository) -> None:
    ran = repository.gate("--shard", "2/2")
    assert ran.code == 0
    assert ran.out.startswith("This part has no case")
    assert "this part has no case" in (repository.out / "summary.md").read_text()
    assert json.loads((repository.out / "gate.json").read_text())["cases"] == {}


@pytest.mark.parametrize(
    ("option", "given"), [("--shard", "0/2"), ("--shard", "3/2"), ("--shard", "two"), ("--jobs", "0"), ("--jobs", "x")]
)
def test_what_is_no_part_and_no_count_is_refused(repository: Repository, option: str, given: str) -> None:
    assert_refused(repository.gate(option, given), 2, given)
