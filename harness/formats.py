"""What a command prints of verdicts in each format, and the files that a run keeps."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from firstdiff.checked import Checked
from firstdiff.errors import CaptureError, UsageError
from firstdiff.verdict import Verdict


def alone(verdict: Verdict, case: str, report: str | None = None) -> Checked:
    """A verdict that is held to nothing but itself."""
    from firstdiff.reports.words import sentences

    failures = () if verdict.exit_code == 0 else tuple(sentences(verdict)[:1])
    return Checked(case, verdict, failures, verdict.exit_code, report=report)


def written(cases: Sequence[Checked], kind: str) -> str:
    """Verdicts as ``markdown``, ``junit`` or ``html``, ending in a newline.

    Raises
    ------
    UsageError
        For a page of several verdicts.
    """
    from firstdiff.reports import junit, markdown

    if kind == "markdown":
        return markdown.render(cases)
    if kind == "junit":
        return junit.render(cases)
    verdicts = [c.verdict for c in cases if c.verdict is not None]
    if len(cases) != 1 or not verdicts:
        raise UsageError("--format html: a page shows one verdict: name one case, or take another format")
    return page(verdicts[0])


def page(verdict: Verdict) -> str:
    """A verdict as a page for a browser."""
    return str(import_module("firstdiff.reports.html").render(verdict))


def keep_page(verdict: Verdict, out: Path) -> Path:
    """Write the page of a verdict beside its ``verdict.json``, and return what is to be looked at.

    Raises
    ------
    CaptureError
        Where it cannot be written.
    """
    if find_spec("firstdiff.reports.html") is None:
        return out / "verdict.json"
    return keep(out / "report.html", page(verdict))


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
