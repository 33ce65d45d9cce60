"""The words of every report: numbers, lists and cells of tables for people, as plain strings.

Whoever prints them makes them fit for its page: names in traces are hostile, and are passed on as they are.

`where` is the name or path of ``verdict.json``, to be named where something is left out; None if there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

from firstdiff.dumps.points import plural
from firstdiff.verdict import SiteVerdict

NAMED = 6  # sites named one by one in a sentence: two lines of 80 columns
REASONS = 3  # of sites that are not comparable, of steps whose top-1 differs, and of hypotheses that failed
WHOLE = range(100, 1_000_000)  # numbers written without decimals


# Numbers and lists.


def number(x: float | None, digits: int = 2) -> str:
    """A number in two digits; in full where it reads better so, ``-`` where there is none."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if isfinite(x) and int(abs(x)) in WHOLE else f"{x:.{digits}g}"


def apart(a: float | None, b: float | None, digits: int = 2) -> tuple[str, str]:
    """Two numbers, with as many digits as it takes to see that they are not the same."""
    pairs = [(number(a, n), number(b, n)) for n in range(digits, 10)]
    return next((p for p in pairs if p[0] != p[1]), pairs[0])


def counted(n: int, noun: str) -> str:
    """Write ``1 site``, ``1,200 sites``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(names: Sequence[object], where: str | None = None, *, comma: str = ", ", most: int = NAMED) -> str:
    """The first few of many names, and how many more there are."""
    more = len(names) - most
    return comma.join(map(str, names[:most])) + (f" and {more:,} more{all_in(where)}" if more > 0 else "")


def all_in(where: str | None) -> str:
    """Where to find what was left out, to stand behind a number or a noun; nothing where there is no such file."""
    return f" ({where} has all)" if where else ""


def named_steps(steps: Iterable[int]) -> str:
    """Write ``Step 0``, or ``Steps 0, 2-4``."""
    written = runs(steps)
    return f"Step {written}" if written.isdigit() else f"Steps {written}"


def runs(numbers: Iterable[int]) -> str:
    """Write ``0, 2, 3, 4`` as ``0, 2-4``."""
    spans: list[list[int]] = []
    for n in sorted(numbers):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


# Cells of the table of diverging sites.


def place(site: SiteVerdict) -> str:
    """Only the axes that narrow the error down."""
    if not site.where:
        return ""
    return ", ".join(along(axis, span) for axis, span in site.where.items() if span != "all") or "everywhere"


def along(axis: str, span: str) -> str:
    """Write ``tokens 0, 3-5`` and ``token 0``."""
    return f"{axis if span.partition(' (')[0].isdigit() else plural(axis)} {span}"


def inputs(site: SiteVerdict) -> str:
    """What is known of a site's inputs, in a word."""
    if not site.inputs_right:
        return "wrong"
    return "not judged" if site.segment or site.leans else "right"
