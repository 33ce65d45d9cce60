"""A verdict as a notebook shows it: the sentences, the explanations and the map, as a fragment of HTML.

No script and no style sheet, which would act on the whole notebook. Colour only repeats what the characters say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from firstdiff.reports import map as layers
from firstdiff.reports import words
from firstdiff.verdict import CounterCheck, Explanation, Verdict

WIDTH = 110  # columns of the map: what a cell of a notebook has room for
COLOURS = {"green": "#008060", "yellow": "#a66f00", "red": "#d55e00", "magenta": "#b0578d"}
"""Okabe and Ito's, a little darker where white paper needs it."""


def fragment(verdict: Verdict) -> str:
    """The first part of the report. Names in traces are hostile, and stay text."""
    head, *rest = words.sentences(verdict)
    parts = [f"<p><strong>{text(head)}</strong></p>"]
    if verdict.explanations:
        parts.append(explained(verdict.explanations))
    if verdict.counter_check is not None:
        parts.append(f"<p>{text(counter_check(verdict.counter_check))}</p>")
    parts += [f"<p>{text(line)}</p>" for line in rest]
    if drawn := layers.lines(verdict, WIDTH):
        parts.append(_pre(drawn))
    facts = "".join(
        f'<tr><td style="text-align: left; vertical-align: top; opacity: 0.75">{text(label)}</td>'
        f'<td style="text-align: left">{text(told)}</td></tr>'
        for label, told in words.facts(verdict)
    )
    return f"<div>{''.join(parts)}<table>{facts}</table></div>"


def explained(explanations: Sequence[Explanation]) -> str:
    """A list of explanations, in execution order."""
    items = "".join(f"<li>{''.join(_item(e))}</li>" for e in explanations)
    return f"<ol>{items}</ol>"


def _item(e: Explanation) -> Iterable[str]:
    head, *rest = told(e)
    yield f"<strong>{text(head)}</strong>"
    yield from (f"<br>{text(line)}" for line in rest)


def told(e: Explanation) -> list[str]:
    """What an explanation says: where and what, then a line each of the fix, the numbers, and the rest."""
    lines = [f"{e.extent}: {e.says}" + (f" ({e.hypothesis})" if e.hypothesis else "")]
    if e.fix:
        lines.append(f"Fix: {e.fix}.")
    error, residual = words.apart(e.error, e.residual)
    if e.residual is not None:
        left = f"It leaves {residual} of a local error of {error}, with a floor of {words.number(e.floor)}"
        best = e.next_best
        lines.append(left + (f"; next best {best.hypothesis}: {words.number(best.residual)}." if best else "."))
    elif e.next_best is not None:
        lines.append(
            f"Nearest: {e.next_best.hypothesis}, which leaves {words.number(e.next_best.residual)} of {error}."
        )
    lines += [f"{finding[:1].upper()}{finding[1:]}." for finding in e.findings]
    if e.equals:
        lines.append(f"As well explained by {', '.join(x.hypothesis for x in e.equals)}.")
    return lines + [f"{x[:1].upper()}{x[1:]}." for x in (e.separate, e.note) if x]


def counter_check(check: CounterCheck) -> str:
    """Whether anything is left once the explanations are applied."""
    applied = ", ".join(check.applied)
    if check.agrees:
        return f"With {applied} in the reference too, every site agrees: nothing else is wrong."
    return (
        f"With {applied} in the reference too, {words.counted(len(check.left), 'site')} still diverge: "
        + words.listed(check.left)
    )


def text(told: str) -> str:
    """Text for HTML, control characters made visible."""
    return escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in told))


def _pre(lines: Iterable[layers.Line]) -> str:
    drawn = "\n".join("".join(_span(*span) for span in line) for line in lines)
    return f'<pre style="line-height: 1.25">{drawn}</pre>'


def _span(told: str, style: str) -> str:
    looks = [f"color: {COLOURS[name]}" for name in style.split() if name in COLOURS]
    looks += ["font-weight: bold"] if "bold" in style else []
    looks += ["opacity: 0.6"] if "dim" in style else []
    return f'<span style="{"; ".join(looks)}">{text(told)}</span>' if looks else text(told)
