"""A gate that was interrupted goes on where it was: what was judged is not judged again, unless it has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.command_line import Command, Ran, assert_refused
from builders.gate import Repository, scaled
from firstdiff.gate import cases as gate_cases


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that are judged."""
    seen: list[str] = []
    real = gate_cases._checked
    monkeypatch.setattr(gate_cases, "_checked", lambda run: (seen.append(run.case.name), real(run))[1])
    return seen


@pytest.fixture
def gate(repository: Repository, command: Command) -> Callable[..., Ran]:
    """The gate of two traces, whose baselines are there, always into the same folder."""
    Path("other").symlink_to(repository.kept / "wrong")
    repository.config('[models]\ntiny = "tiny.gguf"\n[traces]\nmine = "mine"\nother = "other"\n')
    repository.gate("--force-regen")
    return lambda *options: command("gate", "--out", "kept", *options)


def test_what_was_judged_is_taken_as_it_was(gate: Callable[..., Ran], judged: list[str]) -> None:
    first = gate()
    whole = {p.name: p.read_bytes() for p in Path("kept").iterdir() if p.is_file()}
    again = gate("--resume")
    assert judged == ["tiny/mine", "tiny/other"]
    assert first.code == again.code == 1
    assert {p.name: p.read_bytes() for p in Path("kept").iterdir() if p.is_file()} == whole
    said = "\nJudged in an earlier run, and taken from there: 2 of 2.\n"
    assert said in again.out
    assert again.out.replace(said, "") == first.out


def test_without_being_asked_all_is_judged_again(gate: Callable[..., Ran], judged: list[str]) -> None:
    gate()
    gate()
    assert judged == ["tiny/mine", "tiny/other"] * 2


def test_a_case_that_was_not_ended_is_judged(gate: Callable[..., Ran], judged: list[str]) -> None:
    gate()
    Path("kept/tiny/other/case.json").unlink()
    gate("--resume")
    assert judged == ["tiny/mine", "tiny/other", "tiny/other"]


CHANGES: dict[str, Callable[[Repository], object]] = {
    "a tensor of the trace": lambda repository: repository.holds("right", scaled(1.5, "Qcur-1")),
    "limits": lambda _: _added("[limits]\nfloors = 2.0\n"),
    "the baseline": lambda _: _touched(Path("firstdiff-baseline/tiny/mine.json")),
    "the result, cut short": lambda _: _cut(Path("kept/tiny/mine/case.json")),
    "the verdict, edited": lambda _: _edited(Path("kept/tiny/mine/verdict.json")),
    "another version's": lambda _: _as_of_before(Path("kept/tiny/mine/case.json")),
}


def _added(text: str) -> None:
    path = Path("firstdiff.toml")
    path.write_text(path.read_text() + text)


def _touched(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _edited(path: Path) -> None:
    path.write_text(path.read_text().replace('"verdict": "agrees"', '"verdict": "diverges"'))


def _as_of_before(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "0" * 64}))


@pytest.mark.parametrize("change", CHANGES)
def test_a_case_of_which_anything_has_changed_is_judged_again(
    gate: Callable[..., Ran], repository: Repository, judged: list[str], change: str
) -> None:
    gate()
    judged.clear()
    CHANGES[change](repository)
    gate("--resume")
    assert "tiny/mine" in judged


def test_where_the_earlier_run_lies_must_be_told(repository: Repository, command: Command) -> None:
    assert_refused(command("gate", "--resume"), 2, "--out")
