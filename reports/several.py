"""Several candidates for a terminal: where they part first, then one line each, then each one's own report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from firstdiff.reports.terminal import show as show_one
from firstdiff.verdict import Verdict


class Parts(Protocol):
    """Where candidates part: :class:`firstdiff.several.Parting`."""

    def sentence(self) -> str: ...  # noqa: D102


def show(
    verdicts: Sequence[Verdict],
    names: Sequence[str],
    parts: Parts | None,
    console: Console,
    *,
    where: str | None = None,
) -> None:
    """Print the candidates in one table, with the site where they part, and the report of each that diverges."""
    said = "No site is wrong in one candidate and right in another." if parts is None else parts.sentence()
    console.print(Text(said), soft_wrap=False)
    console.print()
    console.print(_table(verdicts, names))
    for verdict, name in zip(verdicts, names, strict=True):
        if verdict.verdict != "agrees":
            console.print(Rule(Text(name), characters="-"))
            show_one(verdict, console, where=where)


def _table(verdicts: Sequence[Verdict], names: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for heading in ("candidate", "verdict", "first", "local error", "diverging", "recorded"):
        table.add_column(heading, justify="right" if heading in ("local error", "diverging", "recorded") else "left")
    for verdict, name in zip(verdicts, names, strict=True):
        first = verdict.first
        table.add_row(
            Text(name),
            verdict.verdict,
            Text(first.site if first else "-"),
            f"{first.local_error:.2g}" if first and first.local_error is not None else f"{verdict.worst_error:.2g}",
            f"{len(verdict.diverging):,}",
            f"{verdict.coverage['recorded']:,} of {verdict.coverage['sites']:,}",
        )
    return table
