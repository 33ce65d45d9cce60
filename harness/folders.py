"""Folders that runs keep their files in: made late, and what cannot be written said in one line."""

from __future__ import annotations

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
