"""Verdicts as annotations of GitHub's workflow commands: lines of a log that appear beside the commit.

Source: GitHub's documentation of workflow commands, and `escapeData` and `escapeProperty` of actions/toolkit.
"""

from __future__ import annotations

from collections.abc import Sequence

from firstdiff.reports.escaped import escaped
from firstdiff.reports.explanations import paragraphs
from firstdiff.verdict.gated import Checked

MOST = 10
"""Annotations of one kind that GitHub shows of a step."""

LONGEST = 1000  # characters


def lines(cases: Sequence[Checked]) -> list[str]:
    """One ``::error`` line for each case that does not pass, ten at most; the last one counts those left out."""
    wrong = [c for c in cases if not c.passes]
    shown = wrong if len(wrong) <= MOST else wrong[: MOST - 1]
    told = [_error(f"firstdiff: {c.case}", _message(c)) for c in shown]
    if len(wrong) > len(shown):
        told.append(_error("firstdiff", f"{len(wrong) - len(shown):,} more cases do not pass"))
    return told


def _message(c: Checked) -> str:
    told = [*c.failures[:1], *(paragraphs(c.verdict)[:1] if c.verdict is not None else ())]
    return "\n".join(t[:LONGEST] for t in told)


def _error(title: str, message: str) -> str:
    name = _data(title[:LONGEST]).replace(":", "%3A").replace(",", "%2C")
    return f"::error title={name}::{_data(message)}"


def _data(text: str) -> str:
    return escaped(text, keep="\n").replace("%", "%25").replace("\n", "%0A")
