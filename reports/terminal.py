"""The verdict for a terminal: in a sentence what is the first to go wrong, why, then a map, a table, the coverage.

Readable in 60 columns and in black and white: colour only repeats what the characters say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from firstdiff.reports import explanations, words
from firstdiff.reports import map as layers
from firstdiff.reports.escaped import escaped
from firstdiff.reports.facts import facts
from firstdiff.reports.sentences import contract, dump, sentences, untried
from firstdiff.verdict import Explanation, SiteVerdict, Verdict

ROWS = 20  # of the table of diverging sites
NARROW = 72  # columns below which the table leaves out operation and drift, so that `where` keeps its room


def render(verdict: Verdict, *, width: int | None = None, color: bool = False, where: str | None = None) -> str:
    """Write a verdict for a terminal. No line ends in a space.

    Parameters
    ----------
    verdict
        What to write.
    width
        Columns; by default those of the terminal, or 80 where there is none.
    color
        Whether to add ANSI codes.
    where
        The name or path of ``verdict.json``, to be named where something is left out; None if there is none.
    """
    console = Console(
        file=StringIO(),
        width=width,
        force_terminal=color,
        force_jupyter=False,
        color_system="standard" if color else None,
        no_color=not color,
    )
    with console.capture() as written:
        show(verdict, console, where=where)
    return written.get()


def show(verdict: Verdict, console: Console, *, where: str | None = None) -> None:
    """Print a verdict on a rich console, in ASCII where its encoding is not a Unicode one.

    `where` is the name or path of ``verdict.json``, as for :func:`render`.
    """
    page = Page(console.width, console.encoding)
    sections = (
        _sentences(verdict, page, where),
        [page.text(told) for told in explanations.paragraphs(verdict, where)],
        [page.line(line) for line in layers.lines(verdict, page.width, where)],
        _table(verdict, page, where),
        _facts(verdict, page, where),
    )
    for i, section in enumerate(s for s in sections if s):
        if i:
            console.print()
        for part in section:
            console.print(Trimmed(part), highlight=False)


def show_explanations(verdict: Verdict, chosen: Sequence[Explanation], site: str | None, console: Console) -> None:
    """Print some explanations of a verdict in full; without any, say why there is none."""
    page = Page(console.width, console.encoding)
    told = [[page.text(part) for part in explanations.in_full(e)] for e in chosen]
    broken = [page.text(part) for part in (*dump(verdict), *contract(verdict))]
    if site is None:
        told.append([page.text(part) for part in filter(None, [explanations.counter_check(verdict)])])
    if not chosen:
        told = [[page.text(explanations.nothing(verdict, site))]]
    told.insert(0, broken)
    told.append([page.text(part) for part in filter(None, [untried(verdict.failed)])])
    for i, part in enumerate(x for x in told if x):
        if i:
            console.print()
        for line in part:
            console.print(Trimmed(line), highlight=False)


@dataclass(frozen=True, slots=True)
class Page:
    """What is written on. Every string passes through :meth:`text`, as names in traces are hostile."""

    width: int
    encoding: str

    def text(self, told: str, style: str = "") -> Text:
        """Text without markup, with control characters made visible, in characters the page can hold."""
        if not self.encoding.startswith("utf"):
            told = told.translate({ord("·"): ".", ord("…"): "...", ord("─"): "-"})
            told = told.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return Text(escaped(told), style, overflow="fold")

    def line(self, spans: layers.Line) -> Text:
        """Words in their styles, one after the other."""
        line = self.text("")
        for span in spans:
            line.append_text(self.text(*span))
        return line


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A part of the report without the blanks that its lines end in: they would wrap, and be copied."""

    part: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for line in console.render_lines(self.part, options, pad=False):
            left = len("".join(segment.text for segment in line).rstrip())
            for text, style, _ in line:
                yield Segment(text[:left], style)
                left -= min(left, len(text))
            yield Segment.line()


def _sentences(verdict: Verdict, page: Page, where: str | None) -> list[RenderableType]:
    head, *rest = sentences(verdict, where)
    return [page.text(head, "bold"), *map(page.text, rest)]


def _table(verdict: Verdict, page: Page, where: str | None) -> list[RenderableType]:
    """The diverging sites, a row each."""
    diverging = verdict.diverging
    if not diverging:
        return []
    wide = page.width >= NARROW
    drift = wide and any(s.drift is not None for s in diverging)
    columns: dict[str, Callable[[SiteVerdict], str]] = {
        "diverges": lambda s: str(s.site),
        **({"op": lambda s: s.op} if wide else {}),
        "local error": lambda s: words.apart(s.local_error, s.floor)[0],
        "floor": lambda s: words.apart(s.local_error, s.floor)[1],
        **({"drift": lambda s: words.number(s.drift)} if drift else {}),
        "where": words.place,
        "inputs": words.inputs,
    }
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        numeric = name in {"local error", "floor", "drift"}
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", min_width=min(len(name), 8))
    for site in diverging[:ROWS]:
        table.add_row(*(page.text(cell(site)) for cell in columns.values()))
    more = len(diverging) - ROWS
    return [table, *([page.text(f"and {more:,} more{words.all_in(where)}")] if more > 0 else [])]


def _facts(verdict: Verdict, page: Page, where: str | None) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, told in facts(verdict, where):
        grid.add_row(page.text(label, "dim"), page.text(told))
    return [grid]
