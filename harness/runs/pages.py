"""The HTML page of a verdict, written into one file."""

from __future__ import annotations

import os
from pathlib import Path

from firstdiff.errors import CaptureError
from firstdiff.runs.folder import FILE
from firstdiff.verdict import Verdict


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


def report_of(verdict: Verdict, out: Path, *, passes: bool) -> str:
    """Path of what is to be looked at in a run's folder: a page, made where something is wrong; or the verdict.

    Raises
    ------
    CaptureError
        Where the page cannot be written.
    """
    if passes:
        return str(out / FILE)
    path = out / "report.html"
    write(path, verdict)
    return str(path)
