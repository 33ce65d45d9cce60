"""Parts of a gate are made one: what comes out is what one run would have written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.command_line import Command, assert_refused
from builders.gate import Repository

ALL = [f"tiny/case-{i}" for i in range(5)]


@pytest.fixture
def parts(repository: Repository, command: Command) -> list[str]:
    """A gate of five cases, one of them wrong, run whole and in two parts."""
    for i in range(5):
        Path(f"trace-{i}").symlink_to(repository.kept / ("wrong" if i == 3 else "right"))
    traces = "".join(f'case-{i} = "trace-{i}"\n' for i in range(5))
    repository.config(f'[models]\ntiny = "tiny.gguf"\n[traces]\n{traces}')
    repository.gate("--force-regen")
    command("gate", "--out", "whole")
    for part in (1, 2):
        command("gate", "--out", f"part-{part}", "--shard", f"{part}/2")
    return ["part-1", "part-2"]


def test_two_parts_are_to_the_byte_what_one_run_writes(parts: list[str], command: Command) -> None:
    ran = command("merge", *reversed(parts), "--out", "merged")
    assert ran.code == 1
    for file in ("gate.json", "summary.md", "junit.xml", "index.html", *(f"{name}/verdict.json" for name in ALL)):
        assert Path("merged", file).read_text().replace("merged", "whole") == Path("whole", file).read_text()
    assert Path("merged/tiny/case-3/report.html").read_bytes() == Path("whole/tiny/case-3/report.html").read_bytes()
    assert ran.out.splitlines()[0] == "1 of 5 cases does not pass."


def test_a_case_that_is_in_two_parts_counts_once(parts: list[str], command: Command) -> None:
    command("gate", "--out", "again", "--case", ALL[1])
    assert command("merge", *parts, "again", "--out", "merged").code == 1
    assert list(json.loads(Path("merged/gate.json").read_text())["cases"]) == ALL


def test_merged_parts_can_be_a_part_again(parts: list[str], command: Command) -> None:
    command("merge", *parts, "--out", "merged")
    assert command("merge", "merged", "--out", "remade").code == 1
    assert Path("remade/gate.json").read_text().replace("remade", "merged") == Path("merged/gate.json").read_text()


def _without_a_part(parts: list[str]) -> list[str]:
    return parts[:1]


def _another_gate(parts: list[str]) -> list[str]:
    told = json.loads(Path("part-2/gate.json").read_text())
    Path("part-2/gate.json").write_text(json.dumps(told | {"every": [*told["every"], "tiny/more"]}))
    return parts


def _no_gate(parts: list[str]) -> list[str]:
    Path("empty").mkdir()
    return [*parts, "empty"]


def _judged_differently(parts: list[str]) -> list[str]:
    shutil.copytree("part-2", "part-3")
    case = Path("part-3/tiny/case-1/case.json")
    case.write_text(json.dumps(json.loads(case.read_text()) | {"notes": ["another"]}))
    return [*parts, "part-3"]


def _leaves_the_folder(parts: list[str]) -> list[str]:
    told = json.loads(Path("part-1/gate.json").read_text())
    Path("part-1/gate.json").write_text(json.dumps(told | {"every": ["../../outside"], "cases": {"../../outside": {}}}))
    return parts[:1]


def _damaged(parts: list[str]) -> list[str]:
    Path("part-1/tiny/case-0/case.json").write_text("{")
    return parts


@pytest.mark.parametrize(
    ("spoilt", "code", "said"),
    [
        (_without_a_part, 2, "2 of 5 cases are in no part: tiny/case-1, tiny/case-3"),
        (_another_gate, 2, "part-2: is a part of another gate than part-1"),
        (_no_gate, 3, "empty: is no folder of firstdiff gate"),
        (_judged_differently, 2, "'tiny/case-1' was judged in part-2/tiny/case-1 and in part-3/tiny/case-1"),
        (_leaves_the_folder, 3, "part-1/gate.json: does not say which cases there are"),
        (_damaged, 3, "part-1/tiny/case-0/case.json"),
    ],
)
def test_what_are_no_parts_of_one_gate_is_refused(
    parts: list[str], command: Command, spoilt: Callable[[list[str]], list[str]], code: int, said: str
) -> None:
    assert_refused(command("merge", *spoilt(parts), "--out", "merged"), code, said)


@pytest.mark.parametrize("given", [("--html", "page.html"), ("--model", "tiny.gguf"), ("--budget", "5")])
def test_options_for_layers_are_refused_for_a_gate(parts: list[str], command: Command, given: tuple[str, str]) -> None:
    assert_refused(command("merge", *parts, "--out", "merged", *given), 2, f"{given[0]}: is for layers of a trace")
