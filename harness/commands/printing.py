"""What commands print of verdicts: the report, or the verdict in another format."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstdiff.errors import UsageError
from firstdiff.runs import pages
from firstdiff.runs.folder import FILE, keep_verdict, keep_verdicts
from firstdiff.verdict import Verdict
from firstdiff.verdict.gated import Checked
from firstdiff.verdict.side_by_side import names_of, summary, to_json
from firstdiff.verdict.writing import strict


def alone(verdict: Verdict, report: str | None, case: str | None = None) -> Checked:
    """A verdict that is held to nothing but itself."""
    from firstdiff.reports.sentences import sentences

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


def print_result(options: argparse.Namespace, result: tuple[str, dict[str, Any], int]) -> int:
    """Print a command's text, or its record as JSON, and return its exit code."""
    text, record, code = result
    print(json.dumps(strict(record), indent=1, allow_nan=False) if options.json else text)
    return code


def show_verdict(verdict: Verdict, options: argparse.Namespace, out: Path | None) -> int:
    """Write the verdict and its page, print the report (or the verdict), and return the exit code."""
    verdict = keep_verdict(out, verdict, options.arguments)
    page = getattr(options, "html", None)
    if page is not None:
        pages.write(page, verdict)
    if options.format != "text":
        report = None if out is None else str(out / FILE)
        as_json = options.format == "json"
        sys.stdout.write(verdict.to_json() if as_json else written([alone(verdict, report)], options.format))
        return verdict.exit_code
    from rich.console import Console

    from firstdiff.reports.terminal import show

    show(verdict, Console(), where=None if out is None else FILE)
    if out is not None:
        traces = "Traces and verdict" if any(out.glob("**/trace.json")) else "Verdict"
        print(f"\n{traces}: {out}")
    if page is not None:
        print(f"Page: {page}")
    return verdict.exit_code


def show_verdicts(verdicts: Sequence[Verdict], given: Sequence[str], options: argparse.Namespace, out: Path) -> int:
    """Print where the candidates part and the report of each that is not right; the worst exit code."""
    called = names_of(verdicts, given)
    verdicts = keep_verdicts(out, verdicts, called, options.arguments)
    code = max(v.exit_code for v in verdicts)
    if options.format != "text":
        cases = [alone(v, str(out / FILE), name) for v, name in zip(verdicts, called, strict=True)]
        as_json = options.format == "json"
        sys.stdout.write(to_json(verdicts, called) if as_json else written(cases, options.format))
        return code
    from rich.console import Console

    from firstdiff.reports.several import show

    show(verdicts, called, summary(verdicts, called), Console(), where=FILE)
    print(f"\nTraces and verdict: {out}")
    return code
