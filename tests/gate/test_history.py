"""Runs of a gate over time: each adds a line, and the page shows what became of every case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.command_line import assert_refused
from builders.gate import Repository, scaled


def test_each_run_adds_a_line_and_the_page_shows_all(repository: Repository) -> None:
    repository.gate("--force-regen", "--history", "history.jsonl")
    repository.holds("right", scaled(1.5, "Qcur-1"))
    repository.gate("--history", "history.jsonl")
    first, second = (json.loads(line) for line in Path("history.jsonl").read_text().splitlines())
    assert first["cases"] == {"tiny/mine": [True, ""]}
    assert second["cases"] == {"tiny/mine": [False, "Qcur-1"]}
    page = (repository.out / "index.html").read_text()
    assert "Over time" in page
    assert page.count('<td class="right" title="">') == 1
    assert page.count('<td class="wrong" title="Qcur-1">') == 1


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"time": 1, "version": "1", "cases": {}}',
        '{"time": "", "version": "", "cases": {"a": [1, 2]}}',
    ],
)
def test_a_file_that_is_no_history_is_refused_and_stays(repository: Repository, line: str) -> None:
    repository.gate("--force-regen")
    Path("history.jsonl").write_text(line + "\n")
    assert_refused(repository.gate("--history", "history.jsonl"), 3, "history.jsonl: line 1")
    assert Path("history.jsonl").read_text() == line + "\n"


def test_a_history_that_cannot_be_written_is_said(repository: Repository) -> None:
    repository.gate("--force-regen")
    assert_refused(repository.gate("--history", "nowhere/history.jsonl"), 3, "nowhere/history.jsonl")
