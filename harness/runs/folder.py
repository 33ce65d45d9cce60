"""The folder that a run keeps its files in: made late, and what cannot be written said in one line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from firstdiff.errors import CaptureError
from firstdiff.verdict import Verdict
from firstdiff.verdict.provenance import ran
from firstdiff.verdict.side_by_side import to_json

FILE = "verdict.json"


def make_folder(out: Path) -> None:
    """Make a folder, once what goes in first is known to be readable: no mistake leaves an empty one.

    Raises
    ------
    CaptureError
        Where that cannot be.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise CaptureError(f"{out}: is a file, where a folder is wanted: give another one with --out") from None
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise CaptureError(f"{out}: cannot be made ({reason}): give another folder with --out") from e


def keep(path: Path, text: str) -> Path:
    """Write one of a run's files, whole or not at all.

    Raises
    ------
    CaptureError
        Where it cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as e:
        raise CaptureError(f"{path}: cannot be written ({e.strerror}): give another folder with --out") from e
    return path


def write_whole(path: Path, text: str) -> None:
    """Write a file whole, or not at all.

    Raises
    ------
    OSError
        Where it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def run_folder(model: Path) -> Path:
    """A folder that is not there yet, for a run to keep its traces in."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{model.stem}"
    base = Path("firstdiff-runs")
    return next(p for n in range(1000) if not (p := base / (stem + (f"-{n}" if n else ""))).exists())


def keep_verdict(out: Path | None, verdict: Verdict, arguments: Sequence[str]) -> Verdict:
    """State in a verdict what was run, and write it as ``verdict.json`` into the run's folder.

    Parameters
    ----------
    out
        The folder; None where none is kept.
    verdict
        What was found.
    arguments
        The command without ``firstdiff`` that gives this verdict.

    Raises
    ------
    CaptureError
        Where it cannot be written.
    """
    verdict = replace(verdict, run=ran(arguments))
    if out is not None:
        keep(out / FILE, verdict.to_json())
    return verdict


def keep_verdicts(
    out: Path, verdicts: Sequence[Verdict], names: Sequence[str], arguments: Sequence[str]
) -> list[Verdict]:
    """The same for several candidates of one run, which share a file."""
    stated = [keep_verdict(None, verdict, arguments) for verdict in verdicts]
    keep(out / FILE, to_json(stated, names))
    return stated
