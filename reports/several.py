"""Several candidates for a terminal: what they have to do with each other, a line each, then a report each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from firstdiff.reports import words
from firstdiff.reports.terminal import NARROW, Page, Trimmed
from firstdiff.reports.terminal import show as show_one
from firstdiff.verdict import Verdict

NUMERIC = ("error", "diverging", "recorded")


def show(
    verdicts: Sequence[Verdict],
    names: Sequence[str],
    summary: Sequence[str],
    console: Console,
    *,
    where: str | None = None,
) -> None:
    """Print the candidates in one table under a summary in sentences, and the report of each that does not agree."""
    page = Page(console.width, console.encoding)
    for sentence in summary:
        console.print(Trimmed(page.text(sentence, "bold" if sentence is summary[0] else "")), highlight=False)
    console.print()
    console.print(Trimmed(_table(verdicts, names, page)), highlight=False)
    for verdict, name in zip(verdicts, names, strict=True):
        if verdict.verdict != "agrees":
            console.print()
            console.print(Trimmed(page.text(f"--- {name} ---", "bold")), highlight=False)
            show_one(verdict, console, where=where)


def _table(verdicts: Sequence[Verdict], names: Sequence[str], page: Page) -> Table:
    columns: dict[str, Callable[[Verdict], str]] = {
        "verdict": lambda v: v.verdict,
        "first": _first,
        "error": lambda v: words.number(v.first.local_error if v.first else v.worst_error),
        "diverging": lambda v: f"{len(v.diverging):,}",
        **({"recorded": lambda v: "{recorded:,} of {sites:,}".format(**v.coverage)} if page.width >= NARROW else {}),
    }
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("candidate", overflow="fold", min_width=len("candidate"))
    for heading in columns:
        table.add_column(heading, justify="right" if heading in NUMERIC else "left", no_wrap=True)
    for verdict, name in zip(verdicts, names, strict=True):
        table.add_row(page.text(name), *(page.text(cell(verdict)) for cell in columns.values()))
    return table


def _first(verdict: Verdict) -> str:
    """What went wrong first: the input contract comes before all sites."""
    return next(iter(verdict.broken), str(verdict.first.site) if verdict.first else "-")
