"""The words of explanations, for every report: why sites diverge, a paragraph an explanation."""

from __future__ import annotations

from firstdiff.reports.words import apart, listed, number
from firstdiff.verdict import CounterCheck, Explanation, Verdict

TRIED = 3  # other hypotheses named in a sentence


def explained(verdict: Verdict) -> list[str]:
    """Why the sites of a verdict diverge; nothing for one in which none does."""
    told = [_explained(e) for e in verdict.explanations]
    return told if verdict.counter_check is None else [*told, _counter_check(verdict.counter_check)]


def _explained(e: Explanation) -> str:
    told = [f"{_upper(e.extent)}: {e.says}."]
    if e.residual is not None:
        error, residual = apart(e.error, e.residual)
        told.append(f"With that in the reference, {residual} is left of a local error of {error}.")
    if e.equals:
        others = listed([t.says for t in e.equals], comma="; ", most=TRIED)
        told.append(f"Explained as well by: {others}.")
    if e.separate:
        told.append(f"{_upper(e.separate)}.")
    if e.fix:
        told.append(f"To do: {e.fix}.")
    told += [f"{_upper(finding).rstrip('.')}." for finding in e.findings]
    if e.hypothesis is None and e.next_best is not None:
        told.append(f"The nearest, {e.next_best.says}, leaves {number(e.next_best.residual)}.")
    if e.note:
        told.append(f"{_upper(e.note).rstrip('.')}.")
    return " ".join(told)


def _counter_check(check: CounterCheck) -> str:
    applied = ", ".join(check.applied)
    if check.agrees:
        return f"Counter-check: with {applied} made in the reference, nothing diverges."
    return f"Counter-check: with {applied} made in the reference, {listed(check.left)} diverge all the same."


def _upper(text: str) -> str:
    """A sentence's beginning; a site's name keeps its own."""
    first, _, _ = text.partition(" ")
    return text if any(c in first for c in "_-0123456789") else text[:1].upper() + text[1:]
