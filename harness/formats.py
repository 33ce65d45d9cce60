"""What a command prints of verdicts in each format, and the files that a run keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from firstdiff import pages
from firstdiff.checked import Checked
from firstdiff.errors import UsageError
from firstdiff.verdict import Verdict


def alone(verdict: Verdict, report: str | None, case: str | None = None) -> Checked:
    """A verdict that is held to nothing but itself."""
    from firstdiff.reports.words import sentences

    failures = () if verdict.exit_code == 0 else tuple(sentences(verdict)[:1])
    return Checked(case or verdict.candidate, verdict, failures, verdict.exit_code, report=report)


def written(cases: Sequence[Checked], kind: str) -> str:
    """Verdicts as ``markdown``, ``junit`` or ``html``, ending in a newline.

    Raises
    ------
    UsageError
        For a page of several verdicts.
    """
    from firstdiff.reports import html, junit, markdown

    if kind == "markdown":
        return markdown.render(cases)
    if kind == "junit":
        return junit.render(cases)
    verdicts = [c.verdict for c in cases if c.verdict is not None]
    if len(cases) != 1 or not verdicts:
        raise UsageError("--format html: a page shows one verdict: name one case, or take another format")
    return html.render(verdicts[0])


def report_of(verdict: Verdict, out: Path, *, passes: bool) -> str:
    """Path of what is to be looked at in a run's folder: a page, made where something is wrong; or the verdict.

    Raises
    ------
    CaptureError
        Where the page cannot be written.
    """
    if passes:
        return str(out / "verdict.json")
    path = out / "report.html"
    pages.write(path, verdict)
    return str(path)
