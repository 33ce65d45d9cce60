"""The words of explanations: why sites diverge, and what is said where no hypothesis fits."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from firstdiff.reports.words import all_in, apart, counted, listed, number
from firstdiff.verdict import CounterCheck, Explanation, Series, Status, Verdict

MOST = 6  # explanations in a report; the verdict has all
RUNNERS_UP = 12


def paragraphs(verdict: Verdict, where: str | None = None) -> list[str]:
    """Each explanation in some sentences, and what the counter-check says; nothing where there is none."""
    told = [explained(e) for e in shown(verdict)]
    return [*told, *after(verdict, where)]


def shown(verdict: Verdict) -> tuple[Explanation, ...]:
    """The explanations that a report tells one by one."""
    return tuple(e for e in verdict.explanations if not e.unsearched)[:MOST]


def after(verdict: Verdict, where: str | None = None) -> list[str]:
    """What is said after the explanations: how many more there are, what was not searched, the counter-check."""
    unsearched = [e for e in verdict.explanations if e.unsearched]
    more = len(verdict.explanations) - len(unsearched) - MOST
    told = []
    if more > 0:
        told.append(f"And {more:,} more explanation{'s' if more > 1 else ''}{all_in(where)}.")
    if unsearched:
        told.append(_not_searched(unsearched))
    return [*told, *filter(None, [counter_check(verdict, where)])]


def _not_searched(unsearched: Sequence[Explanation]) -> str:
    """The sites that there was no time for, and what to do."""
    first = unsearched[0]
    where = "; ".join(f"{e.extent}{_sites(len(e.unsearched))}" for e in unsearched)
    return f"{first.says[:1].upper()}{first.says[1:]}: {where}. To do: {first.fix}."


def _sites(count: int) -> str:
    return f" ({count:,} sites)" if count > 1 else ""


def explained(e: Explanation) -> str:
    """One explanation: what is wrong where, how well it fits, what to do."""
    if e.unsearched:
        return _not_searched([e])
    if e.hypothesis is None:
        findings = "; ".join(e.findings)
        looks = f" The difference: {findings}." if findings else ""
        best = (
            f" The nearest is {e.next_best.hypothesis}, which leaves {number(e.next_best.residual)}."
            if e.next_best
            else ""
        )
        return f"{e.extent}: {e.says}.{looks}{best}"
    when = f", {e.when}" if e.when else ""
    inside = f", in {e.inside}" if e.inside else ""
    parts = [f"{e.extent}{inside}{when}: {e.says} ({e.hypothesis}).", _fit(e)]
    if e.equals:
        others = " and ".join(f"{t.hypothesis} ({t.says})" for t in e.equals)
        parts.append(f"As well explained by {others}." + (f" {sentence(e.separate)}" if e.separate else ""))
    parts.append(f"To do: {e.fix}.")
    if e.note:
        parts.append(sentence(e.note))
    return " ".join(parts)


def sentence(text: str) -> str:
    """A phrase as a sentence of its own."""
    return f"{text[:1].upper()}{text[1:]}."


def _fit(e: Explanation) -> str:
    error, left = apart(e.error, e.residual)
    told = f"The error is {error}, and {left} with this in the reference; rounding may leave {number(e.floor)}."
    if e.next_best is not None:
        told += f" The next best, {e.next_best.hypothesis}, leaves {number(e.next_best.residual)}."
    if e.measured is not None:
        told += f" This was measured on {counted(e.measured.numbers, 'number')} of the candidate"
        fitted = e.measured.unknowns
        told += (
            f", to which {counted(fitted, 'parameter')} {'was' if fitted == 1 else 'were'} fitted." if fitted else "."
        )
    return told


LINES, WIDTH = 24, 24
"""Places that a drawing has, and how wide its bars are at most."""


def drawing(series: Series) -> list[str]:
    """A series in lines: each place with the measured number, the right one where it is another, and a bar.

    Neighbours that have the same numbers share a line.
    """
    rows = _joined(series)
    values = [x for _, measured, right in rows for x in (measured, right) if isfinite(x)]
    low, high = min([0.0, *values]), max([0.0, *values])
    scale = WIDTH / (high - low) if high > low else 0.0
    width = max((len(place) for place, _, _ in rows), default=0)
    numbers = [f"{measured:g}" for _, measured, _ in rows]
    wide = max(map(len, numbers), default=0)
    lines = [f"{series.quantity[:1].upper()}{series.quantity[1:]}, for each {series.axis}:"]
    for (place, measured, right), shown_ in zip(rows[:LINES], numbers, strict=False):
        bar = _bar(measured, low, scale) if isfinite(measured) else ""
        note = "" if measured == right else f"  (right: {right:g})"
        lines.append(f"  {place:>{width}}  {shown_:>{wide}}  {bar}{note}")
    if len(rows) > LINES:
        lines.append(f"  … and {len(rows) - LINES} more")
    return lines


def _bar(x: float, low: float, scale: float) -> str:
    """A bar from 0 to a number: to the left for a negative one, where there are any."""
    zero, end = round(-low * scale), round((x - low) * scale)
    return " " * min(zero, end) + "█" * abs(end - zero)


def _joined(series: Series) -> list[tuple[str, float, float]]:
    """The places with their numbers, neighbours of equal numbers as one."""
    rows: list[tuple[str, float, float]] = []
    for place, measured, right in zip(series.places, series.measured, series.right, strict=True):
        if rows and rows[-1][1:] == (measured, right) and _follows(rows[-1][0], place):
            rows[-1] = (f"{rows[-1][0].partition('-')[0]}-{place.rpartition('-')[2]}", measured, right)
        else:
            rows.append((place, measured, right))
    return rows


def _follows(before: str, place: str) -> bool:
    last, first = before.rpartition("-")[2], place.partition("-")[0]
    return last.isdigit() and first.isdigit() and int(last) + 1 == int(first)


def counter_check(verdict: Verdict, where: str | None = None) -> str:
    """Say whether anything is left once the explanations are applied."""
    check = verdict.counter_check
    if check is None:
        return ""
    changes = sum(e.hypothesis is not None for e in verdict.explanations)
    these = "this one change" if changes == 1 else f"these {changes} changes"
    if check.agrees:
        return f"Checked: with {these} in the reference, {_agreeing(verdict, check)}."
    left = f"{len(check.left):,} site{'s' if len(check.left) > 1 else ''}"
    still = f"still diverge{'s' * (len(check.left) == 1)}"
    return f"Checked: with {these} in the reference, {left} {still}: {listed(check.left, where)}."


def _agreeing(verdict: Verdict, check: CounterCheck) -> str:
    """How many sites agree: never more than were compared."""
    if not check.judged:
        return "no site that diverged does so any more"
    kind = "recorded" if check.judged == verdict.coverage["recorded"] else "compared"
    of = "" if check.judged == len(verdict.sites) else f" (of {len(verdict.sites):,})"
    return f"all {check.judged:,} {kind} sites{of} agree" if check.judged > 1 else f"the only {kind} site{of} agrees"


def in_full(e: Explanation) -> list[str]:
    """An explanation with every hypothesis that was tried and what it leaves, in lines."""
    told = [explained(e)]
    if len(e.sites) > 1:
        told.append(f"Sites: {listed(e.sites, most=RUNNERS_UP)}.")
    if e.measured is not None and e.measured.series is not None:
        told += drawing(e.measured.series)
    if e.tried:
        width = max(len(t.hypothesis) for t in e.tried)
        rows = [f"  {t.hypothesis:{width}}  {number(t.residual):>8}  {t.says}" for t in e.tried]
        told += [f"Tried at {e.searched or e.site}, and what each leaves of the error:", *rows]
    return told


def nothing(verdict: Verdict, site: str | None) -> str:
    """Why there is no explanation: of a site, or of anything."""
    status = {str(s.site): s for s in verdict.sites}.get(site or "")
    if status is None:
        return "Nothing diverges, so there is nothing to explain."
    if status.status is Status.INHERITS:
        return (
            f"{site} inherits: its own operation is right, on inputs that are wrong. Look at what diverges before it."
        )
    reason = f": {status.reason}" if status.reason else ""
    return f"{site}: {status.status}{reason}. Only what diverges is explained."
