"""The command line: ``firstdiff`` in this process, and what it left."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstdiff.cli import main

TOKENS = "1,70,71,72,73"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command left: its exit code and the two streams."""

    code: int
    out: str
    err: str


class Command:
    """``firstdiff`` in this process, its streams caught below Python, where llama.cpp writes."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: object) -> Ran:
        """Run a command; an exception that leaves it is a traceback to its user, and fails the test."""
        self._capfd.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as e:  # argparse's way out
            code = int(e.code or 0)
        caught = self._capfd.readouterr()
        return Ran(code, caught.out, caught.err)


@pytest.fixture
def firstdiff(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, in a folder of the test's own, 80 columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Command(capfd)


def assert_refused(ran: Ran, code: int, *words: str) -> None:
    """One line on stderr that holds all the words, nothing on stdout, and the exit code."""
    assert ran.out == ""
    assert ran.err.startswith("firstdiff: "), ran.err
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err[:-1].isprintable(), ran.err
    missing = [word for word in words if word not in ran.err]
    assert not missing, f"{missing} not in {ran.err}"
    assert ran.code == code


def strict(text: str) -> Any:
    """JSON as the standard has it: without NaN and infinities."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def drained(near: int, child: subprocess.Popen[bytes]) -> str:
    """All that a process writes to the terminal whose near end this is, until it ends."""
    chunks = []
    while True:
        try:
            chunk = os.read(near, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    child.wait()
    return b"".join(chunks).decode()
