"""Verdicts as JUnit XML, which every CI reads: a test case a case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from firstdiff.reports.escaped import escaped
from firstdiff.reports.explanations import paragraphs
from firstdiff.reports.sentences import sentences
from firstdiff.verdict.gated import Checked

LONGEST = 10_000  # characters of a text
SUITE = "firstdiff"


def render(cases: Sequence[Checked]) -> str:
    """Write cases, ending in a newline. No time is written: the same cases give the same bytes."""
    failed = sum(not c.passes and c.verdict is not None for c in cases)
    errors = sum(not c.passes and c.verdict is None for c in cases)
    counts = {"tests": str(len(cases)), "failures": str(failed), "errors": str(errors)}
    root = Element("testsuites", counts)
    inside = SubElement(root, "testsuite", {"name": SUITE} | counts)
    for c in cases:
        _add(inside, c)
    indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def properties(c: Checked) -> Iterator[tuple[str, str]]:
    """What is said of a case, as names and values."""
    verdict = c.verdict
    if verdict is not None:
        yield "firstdiff.verdict", verdict.verdict
        if verdict.first is not None:
            yield "firstdiff.first", str(verdict.first.site)
        yield "firstdiff.judged", f"{verdict.judged} of {len(verdict.sites)}"
        yield from (("firstdiff.explanation", paragraph) for paragraph in paragraphs(verdict))
    if c.report:
        yield "firstdiff.report", c.report


def text(c: Checked) -> str:
    """What is wrong with a case, a line a sentence: first what, then why, then where."""
    told = [*c.failures]
    if c.verdict is not None:
        told += [*paragraphs(c.verdict), *(s for s in sentences(c.verdict) if s not in c.failures)]
    told += [f"Note: {note}." for note in c.notes]
    return "\n".join([*told, *([f"Report: {c.report}"] if c.report else [])])


def _add(suite: Element, c: Checked) -> None:
    case = SubElement(suite, "testcase", {"classname": SUITE, "name": clean(c.case)})
    inside = SubElement(case, "properties")
    for key, value in properties(c):
        SubElement(inside, "property", {"name": key, "value": clean(value)})
    if c.passes:
        return
    kind, type_ = ("error", "error") if c.verdict is None else ("failure", c.verdict.verdict)
    message = clean(c.failures[0]) if c.failures else ""
    SubElement(case, kind, {"message": message, "type": type_}).text = clean(text(c))


def clean(told: str) -> str:
    """Text as XML can hold it: control characters and lone surrogates are made visible, new lines stay."""
    cut = told if len(told) <= LONGEST else told[:LONGEST] + "…"
    return escaped(cut, keep="\n")
