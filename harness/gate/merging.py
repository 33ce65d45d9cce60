"""Parts of a gate, run on several machines, made one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from firstdiff.dumps import TraceError
from firstdiff.dumps.strict_json import MAX_JSON, parse_object
from firstdiff.errors import CaptureError, UsageError
from firstdiff.gate.kept import KEPT, kept_case
from firstdiff.verdict.gated import FORMAT, VERSION, Checked

WHOLE = "gate.json"
SHOWN = 4  # cases that are named


@dataclass(frozen=True, slots=True)
class _Part:
    """A folder that a gate wrote: the cases in it, and all that the gate has."""

    path: Path
    cases: tuple[str, ...]
    every: tuple[str, ...]


def merged(parts: Sequence[Path], out: Path) -> list[Checked]:
    """Gather the cases of a gate's parts in one folder, in the order that one run would have judged them in.

    Verdicts and pages are copied, traces are not.

    Raises
    ------
    UsageError
        For parts of different gates, a case that two parts have and judge differently, or one that none has.
    TraceError
        For a folder that no gate wrote, or one that was damaged.
    CaptureError
        Where `out` cannot be written.
    """
    read = [_part(path) for path in parts]
    every = read[0].every
    for part in read[1:]:
        if part.every != every:
            raise UsageError(f"{part.path}: is a part of another gate than {read[0].path}: its cases are others")
    where: dict[str, Path] = {}
    for part in read:
        for name in part.cases:
            folder = part.path / name
            if name in where and not _same(where[name], folder):
                raise UsageError(f"case {name!r:.80} was judged in {where[name]} and in {folder}, and differently")
            where.setdefault(name, folder)
    if missing := [name for name in every if name not in where]:
        more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        raise UsageError(
            f"{len(missing):,} of {len(every):,} cases are in no part: {', '.join(missing[:SHOWN])}{more}: run them "
            "with --shard or --case, and give that folder too"
        )
    return [_taken(name, where[name], out) for name in every]


def _part(path: Path) -> _Part:
    try:
        told = parse_object((path / WHOLE).read_bytes(), str(path / WHOLE), most=MAX_JSON)
    except OSError as e:
        raise TraceError(f"{path}: is no folder of firstdiff gate: {WHOLE} cannot be read ({e.strerror})") from None
    if (told.get("format"), told.get("version")) != (FORMAT, VERSION):
        raise TraceError(f"{path / WHOLE}: is no result of a gate that this firstdiff reads")
    cases, every = told.get("cases"), told.get("every")
    if not isinstance(cases, dict) or not _are_names(every):
        raise TraceError(f"{path / WHOLE}: does not say which cases there are: run this part again")
    return _Part(path, tuple(name for name in cases if name in every), tuple(every))


def _are_names(every: Any) -> TypeGuard[list[str]]:  # noqa: ANN401 - any JSON value
    """Whether these are names of cases, none of which leaves the folder that it is in."""
    return isinstance(every, list) and all(
        isinstance(name, str) and name and not name.startswith("/") and ".." not in name.split("/") for name in every
    )


def _same(a: Path, b: Path) -> bool:
    """Whether two results of a case are the same, but for where they lie."""
    return replace(kept_case(a), report=None) == replace(kept_case(b), report=None)


def _taken(name: str, folder: Path, out: Path) -> Checked:
    """Copy what is told of a case, and say where its report is now."""
    checked, target = kept_case(folder), out / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if file.is_file() and file.name != KEPT:
                shutil.copyfile(file, target / file.name)
        shutil.copyfile(folder / KEPT, target / KEPT)
    except OSError as e:
        raise CaptureError(f"{target}: cannot be written ({e.strerror}): give another folder with --out") from e
    report = None if checked.report is None else str(target / Path(checked.report).name)
    return replace(checked, report=report, resumed=False)
