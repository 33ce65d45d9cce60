"""A gate's runs over time: a line of JSON for each, in a file that is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firstdiff.dumps import TraceError
from firstdiff.dumps.strict_json import parse_object
from firstdiff.errors import CaptureError
from firstdiff.verdict.gated import Checked
from firstdiff.verdict.provenance import own_version

MOST_BYTES = 1 << 26
LONGEST = 200  # characters of a text


@dataclass(frozen=True, slots=True)
class Past:
    """One run of a gate: when, by which version, and of each case whether it passed and where it first diverged."""

    time: str
    version: str
    cases: dict[str, tuple[bool, str]]


def add_run(path: Path, cases: Sequence[Checked]) -> list[Past]:
    """Add a run to the history, and return all of it.

    Raises
    ------
    TraceError
        For a file that is no history.
    CaptureError
        Where it cannot be written.
    """
    before = read_history(path) if path.exists() else []
    first = {c.case: "" if c.verdict is None or c.verdict.first is None else str(c.verdict.first.site) for c in cases}
    now = Past(
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        own_version(),
        {c.case: (c.passes, first[c.case]) for c in cases},
    )
    line = json.dumps({"time": now.time, "version": now.version, "cases": now.cases})
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as e:
        raise CaptureError(f"{path}: the history cannot be written ({e.strerror})") from e
    return [*before, now]


def read_history(path: Path) -> list[Past]:
    """Read a history.

    Raises
    ------
    TraceError
        With the line that is no run of a gate.
    """
    try:
        with path.open("rb") as file:
            lines = file.read(MOST_BYTES).splitlines()
    except OSError as e:
        raise TraceError(f"{path}: cannot be read ({e.strerror})") from None
    return [_run(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _run(path: Path, number: int, line: bytes) -> Past:
    told = parse_object(line, f"{path}: line {number}")
    when, version, cases = told.get("time"), told.get("version"), told.get("cases")
    if isinstance(when, str) and isinstance(version, str) and isinstance(cases, dict):
        found = {name[:LONGEST]: _case(of) for name, of in cases.items()}
        if None not in found.values():
            return Past(when[:LONGEST], version[:LONGEST], {n: of for n, of in found.items() if of is not None})
    raise TraceError(f"{path}: line {number} is no run of a gate: give --history a file that firstdiff has written")


def _case(of: object) -> tuple[bool, str] | None:
    match of:
        case [bool() as passes, str() as first]:
            return passes, first[:LONGEST]
    return None
