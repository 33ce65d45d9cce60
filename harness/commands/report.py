"""``firstdiff report``."""

from __future__ import annotations

import argparse
import sys

from firstdiff.commands.printing import alone, written
from firstdiff.runs import pages
from firstdiff.verdict.reading import read_verdict


def report(options: argparse.Namespace) -> int:
    """Print a verdict's report again, or write its page."""
    if options.html is not None:
        pages.check(options.html)
    verdict = read_verdict(options.verdict)
    if options.html is not None:
        pages.write(options.html, verdict)
        print(f"Page: {options.html}")
        return verdict.exit_code
    if options.format != "text":
        text = verdict.to_json()
        report = str(options.verdict)
        sys.stdout.write(text if options.format == "json" else written([alone(verdict, report)], options.format))
        return verdict.exit_code
    from rich.console import Console

    from firstdiff.reports.terminal import show

    show(verdict, Console(), where=str(options.verdict))
    return verdict.exit_code
