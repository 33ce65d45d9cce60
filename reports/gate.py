"""A gate for a terminal: a line a case, then what is wrong with each that does not pass."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from firstdiff.reports import words
from firstdiff.reports.explanations import paragraphs
from firstdiff.reports.terminal import Page, Trimmed
from firstdiff.verdict.gated import Changes, Checked

NONE = "This part has no case: there are fewer cases than parts."


def show(cases: Sequence[Checked], console: Console) -> None:
    """Print cases on a rich console."""
    page = Page(console.width, console.encoding)
    if not cases:
        console.print(Trimmed(page.text(NONE, "bold")), highlight=False)
        return
    wrong = [c for c in cases if not c.passes]
    head = f"{len(wrong)} of {words.counted(len(cases), 'case')} {'does' if len(wrong) == 1 else 'do'} not pass."
    if not wrong:
        head = "The case passes." if len(cases) == 1 else f"All {len(cases)} cases pass."
    console.print(Trimmed(page.text(head, "bold")), highlight=False)
    console.print()
    console.print(Trimmed(_table(cases, page)), highlight=False)
    for c in cases:
        told = _told(c)
        if told:
            console.print()
            console.print(Trimmed(page.text(f"--- {c.case} ---", "bold")), highlight=False)
            for paragraph in told:
                console.print(Trimmed(page.text(paragraph)), highlight=False)


def _table(cases: Sequence[Checked], page: Page) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("case", overflow="fold", min_width=len("case"))
    for heading in ("", "first", "error", "judged"):
        table.add_column(heading, justify="right" if heading in ("error", "judged") else "left", no_wrap=True)
    for c in cases:
        v = c.verdict
        first = "" if v is None else next(iter(v.broken), str(v.first.site) if v.first else "-")
        error = "" if v is None else words.number(v.first.local_error if v.first else v.worst_error)
        judged = "" if v is None else f"{v.judged:,} of {len(v.sites):,}"
        mark = page.text("passes", "green") if c.passes else page.text("fails", "bold red")
        table.add_row(page.text(c.case), mark, page.text(first), error, judged)
    return table


def _told(c: Checked) -> list[str]:
    """What is wrong with a case, and what changed."""
    told = [*c.failures]
    if c.verdict is not None and not c.passes:
        told += paragraphs(c.verdict)
    told += [*_changes(c.changes), *(f"Note: {note}." for note in c.notes)]
    if c.report and not c.passes:
        told.append(f"Report: {c.report}")
    return told


def _changes(changes: Changes | None) -> list[str]:
    """What is better than in the baseline, or new: no failure, and worth to be kept."""
    told = []
    if changes is not None and changes.improved:
        sites = words.listed([m.site for m in changes.improved])
        told.append(f"Better than in the baseline: {sites}. Keep it so with --force-regen.")
    if changes is not None and changes.new:
        told.append(f"New since the baseline: {words.listed(changes.new)}. Take them into it with --force-regen.")
    return told
