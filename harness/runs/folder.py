"""The folder that a run keeps its files in: made late, and what cannot be written said in one line."""

from __future__ import annotations

import time
from pathlib import Path

from firstdiff.errors import CaptureError


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
    """Write one of a run's files.

    Raises
    ------
    CaptureError
        Where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise CaptureError(f"{path}: cannot be written ({e.strerror}): give another folder with --out") from e
    return path


def run_folder(model: Path) -> Path:
    """A folder that is not there yet, for a run to keep its traces in."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{model.stem}"
    base = Path("firstdiff-runs")
    return next(p for n in range(1000) if not (p := base / (stem + (f"-{n}" if n else ""))).exists())


def keep_verdict(out: Path, text: str) -> None:
    """Write ``verdict.json`` into a run's folder.

    Raises
    ------
    CaptureError
        Where it cannot be written.
    """
    path = out / "verdict.json"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise CaptureError(f"{path}: cannot be written ({e.strerror}): give another folder with --out") from e
