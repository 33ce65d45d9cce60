"""Verdicts in GitHub's Markdown, for ``$GITHUB_STEP_SUMMARY``. What comes from traces stays text, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from firstdiff.reports import words
from firstdiff.reports.escaped import escaped
from firstdiff.reports.explanations import paragraphs
from firstdiff.reports.sentences import sentences
from firstdiff.verdict import SiteVerdict, Verdict
from firstdiff.verdict.gated import Changes, Checked

MOST = 1 << 20
"""Bytes of a step's summary. Source: GitHub's documentation of workflow commands, "Step isolation and limits"."""

ROWS = 20  # of the table of diverging sites, and of changed sites
LONGEST = 2000  # characters of a sentence or of a name

_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~!$@&^]|(?<=[A-Za-z]):(?=//)|(?<=www)\.|(?<=^[0-9])[.)]|^[-+=]")


def render(cases: Sequence[Checked], *, most: int = MOST) -> str:
    """Write cases: a table of all, then what is wrong with each that does not pass. Ends in a newline.

    Parameters
    ----------
    cases
        What to write.
    most
        Bytes that may be written; what does not fit is left out whole, and counted.
    """
    wrong = [c for c in cases if not c.passes or c.notes or _moved(c.changes)]
    parts = [_title(cases), "\n".join(_table(cases)), *map(_case, wrong)]
    text, left = "", most - 200  # for the last line
    for number, part in enumerate(parts):
        size = len(part.encode()) + 2
        if size > left:
            more = words.counted(len(parts) - number, "section")
            return f"{text}{more} left out: they do not fit, and verdict.json has all.\n"
        text, left = f"{text}{part}\n\n", left - size
    return text[:-1]


def inert(text: str) -> str:
    """Text in which nothing is markup, on one line."""
    return _SPECIAL.sub(lambda match: f"&#{ord(match.group())};", _line(text, LONGEST).strip())


def code(text: str, most: int = 200) -> str:
    """Text in the typeface of names."""
    line = _line(text, most).replace("|", "\N{BROKEN BAR}")  # it ends a table's cell even there
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    blank = " " if line[:1] in "` " or line[-1:] in "` " else ""  # an empty one is no code
    return f"{fence}{blank}{line}{blank}{fence}" if line.strip() else ""


def _line(text: str, most: int) -> str:
    line = escaped(text[: most + 1])
    return line if len(line) <= most else line[:most] + "…"


def _title(cases: Sequence[Checked]) -> str:
    wrong = [c for c in cases if not c.passes]
    if len(cases) == 1:
        (only,) = cases
        said = only.verdict.verdict if only.verdict else "could not be judged"
        return f"## firstdiff: {'passes' if only.passes else said}"
    if not wrong:
        return f"## firstdiff: all {len(cases)} cases pass" if cases else "## firstdiff: this part has no case"
    return f"## firstdiff: {len(wrong)} of {len(cases)} cases {'does' if len(wrong) == 1 else 'do'} not pass"


def _table(cases: Sequence[Checked]) -> Iterator[str]:
    yield "| case | | first to go wrong | local error | judged |"
    yield "| --- | --- | --- | ---: | ---: |"
    for c in cases:
        first, error, judged = _cells(c.verdict)
        mark = "✅ passes" if c.passes else "❌ fails"
        yield f"| {code(c.case)} | {mark} | {first} | {error} | {judged} |"


def _cells(verdict: Verdict | None) -> tuple[str, str, str]:
    if verdict is None:
        return "", "", ""
    first = verdict.first
    name = next((inert(check) for check in verdict.broken), code(str(first.site)) if first else "")
    error = words.number(first.local_error if first else verdict.worst_error)
    return name, error, f"{verdict.judged:,} of {len(verdict.sites):,}"


def _case(c: Checked) -> str:
    """What is to be said of one case."""
    told = [f"### {code(c.case)}", *(f"**{inert(f)}**" for f in c.failures)]
    verdict = c.verdict
    if verdict is not None:
        shown = set(c.failures)
        told += [inert(s) for s in sentences(verdict) if s not in shown] if not c.passes else []
        told += [f"> {inert(paragraph)}" for paragraph in paragraphs(verdict)]
        if verdict.diverging:
            told.append("\n".join(_diverging(verdict.diverging)))
    if c.changes is not None and _moved(c.changes):
        told.append("\n".join(_changes(c.changes)))
    told += [f"Note: {inert(note)}." for note in c.notes]
    if c.report:
        told.append(f"Report: {code(c.report, LONGEST)}")
    return "\n\n".join(told)


def _diverging(sites: Sequence[SiteVerdict]) -> Iterator[str]:
    yield "| diverges | operation | local error | floor | where | inputs |"
    yield "| --- | --- | ---: | ---: | --- | --- |"
    for s in sites[:ROWS]:
        error, floor = words.apart(s.local_error, s.floor)
        site, op, place = code(str(s.site)), code(s.op), inert(words.place(s))
        yield f"| {site} | {op} | {error} | {floor} | {place} | {words.inputs(s)} |"
    if len(sites) > ROWS:
        yield ""
        yield f"and {len(sites) - ROWS:,} more"


def _moved(changes: Changes | None) -> bool:
    return changes is not None and bool(changes.worsened or changes.improved or changes.new or changes.vanished)


def _changes(changes: Changes) -> Iterator[str]:
    """A row a changed site, the worst kind first."""
    rows = [
        *(("vanished", site, "judged", said) for site, said in changes.vanished),
        *(("worsened", m.site, _was(m.was, m.error_was), _was(m.now, m.error)) for m in changes.worsened),
        *(("improved", m.site, _was(m.was, m.error_was), _was(m.now, m.error)) for m in changes.improved),
        *(("new", site, "", "judged") for site in changes.new),
    ]
    yield "| since the baseline | site | was | is |"
    yield "| --- | --- | --- | --- |"
    for kind, site, was, now in rows[:ROWS]:
        yield f"| {kind} | {code(str(site))} | {was} | {now} |"
    if len(rows) > ROWS:
        yield ""
        yield f"and {len(rows) - ROWS:,} more"


def _was(status: str, error: float | None) -> str:
    return f"{status} ({words.number(error)})"
