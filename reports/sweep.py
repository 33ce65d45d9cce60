"""The page of a gate: models beside prompts, engines and steps, a cell a case, with the first site that diverges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import quote

from firstdiff.reports import words
from firstdiff.reports.html import environment, style
from firstdiff.verdict.gated import Checked

RUNS = 60
"""Past runs that are shown, the last ones."""

Run = tuple[str, str, Mapping[str, tuple[bool, str]]]
"""When, by which version, and of each case whether it passed and where it first diverged."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """A case: whether it passes, what is said of it in a few words, what in full, and where its report is."""

    passes: bool
    says: str
    title: str
    link: str


def render(cases: Sequence[Checked], links: Mapping[str, str], past: Sequence[Run] = ()) -> str:
    """Write the page.

    Parameters
    ----------
    cases
        The cases, each named ``MODEL/PROMPT/ENGINE`` or ``MODEL/TRACE``.
    links
        Of each case the path of its report, relative to the page.
    past
        Earlier runs, the oldest first; with them the page shows what became of each case.
    """
    rows: dict[str, dict[str, _Cell]] = {}
    for c in cases:
        model, _, rest = c.case.partition("/")
        rows.setdefault(model, {})[rest] = _cell(c, links.get(c.case, ""))
    columns = list(dict.fromkeys(column for of in rows.values() for column in of))
    wrong = sum(not c.passes for c in cases)
    head = f"{wrong} of {words.counted(len(cases), 'case')} {'does' if wrong == 1 else 'do'} not pass"
    shown = [*past][-RUNS:]
    return environment().get_template("sweep.html.jinja").render(
        style=style(),
        head=head if wrong else f"All {words.counted(len(cases), 'case')} pass",
        columns=columns,
        rows=rows,
        past=[(when, version) for when, version, _ in shown],
        over_time={c.case: [of.get(c.case) for _, _, of in shown] for c in cases} if shown else {},
    )  # fmt: skip


def _cell(c: Checked, link: str) -> _Cell:
    first = "" if c.verdict is None or c.verdict.first is None else str(c.verdict.first.site)
    says = first or ("passes" if c.passes else "not judged" if c.verdict is None else "fails")
    return _Cell(c.passes, says, " ".join(c.failures) or "passes", quote(PurePath(link).as_posix()) if link else "")
