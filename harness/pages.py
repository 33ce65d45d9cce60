"""Where a verdict is written: verdict.json into the run's folder, the HTML page into one file."""

from __future__ import annotations

import os
from pathlib import Path

from firstdiff.errors import CaptureError
from firstdiff.verdict import Verdict


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


def check(path: Path) -> None:
    """Refuse a path that no page can be written to, before minutes of work are spent on it.

    Raises
    ------
    CaptureError
        In one line, with what to do.
    """
    try:
        folder, is_folder = path.parent, path.is_dir()
        there = folder.is_dir()
    except (OSError, ValueError) as e:
        raise _refused(path, getattr(e, "strerror", None) or str(e)) from None
    if is_folder:
        raise _refused(path, "it is a folder")
    if not there:
        raise _refused(path, f"there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise _refused(path, "it is not writable")


def write(path: Path, verdict: Verdict) -> None:
    """Write a verdict's page.

    Raises
    ------
    CaptureError
        Where it cannot be written.
    """
    from firstdiff.reports.html import render

    page = render(verdict)
    try:
        path.write_text(page, encoding="utf-8", newline="\n")
    except (OSError, ValueError) as e:
        raise _refused(path, getattr(e, "strerror", None) or str(e)) from None


def _refused(path: Path, why: str) -> CaptureError:
    return CaptureError(f"{path}: the page cannot be written ({why}): give another file with --html")
