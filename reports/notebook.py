"""A verdict as a notebook shows it: the sentences, the explanations and the map, as a fragment of HTML.

No script and no style sheet, which would act on the whole notebook. Colour only repeats what the characters say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from firstdiff.reports import explanations
from firstdiff.reports import map as layers
from firstdiff.reports.escaped import escaped
from firstdiff.reports.facts import facts
from firstdiff.reports.sentences import sentences
from firstdiff.verdict import Explanation, Verdict

WIDTH = 110  # columns of the map: what a cell of a notebook has room for
COLOURS = {"green": "#008060", "yellow": "#a66f00", "red": "#d55e00", "magenta": "#b0578d"}
"""Okabe and Ito's, a little darker where white paper needs it."""


def fragment(verdict: Verdict) -> str:
    """The first part of the report. Names in traces are hostile, and stay text."""
    head, *rest = sentences(verdict)
    parts = [f"<p><strong>{text(head)}</strong></p>"]
    shown = explanations.shown(verdict)
    if shown:
        parts.append(listed(shown))
    parts += [f"<p>{text(line)}</p>" for line in (*explanations.after(verdict), *rest)]
    if drawn := layers.lines(verdict, WIDTH):
        parts.append(_pre(drawn))
    rows = "".join(
        f'<tr><td style="text-align: left; vertical-align: top; opacity: 0.75">{text(label)}</td>'
        f'<td style="text-align: left">{text(told)}</td></tr>'
        for label, told in facts(verdict)
    )
    return f"<div>{''.join(parts)}<table>{rows}</table></div>"


def listed(told: Sequence[Explanation]) -> str:
    """A list of explanations, in execution order."""
    return f"<ol>{''.join(f'<li>{text(explanations.explained(e))}{_drawn(e)}</li>' for e in told)}</ol>"


def _drawn(e: Explanation) -> str:
    """What an explanation was measured by, place by place."""
    if e.measured is None or e.measured.series is None:
        return ""
    lines = "\n".join(text(line) for line in explanations.drawing(e.measured.series))
    return f'<pre style="line-height: 1.25">{lines}</pre>'


def text(told: str) -> str:
    """Text for HTML, control characters made visible."""
    return escape(escaped(told))


def _pre(lines: Iterable[layers.Line]) -> str:
    drawn = "\n".join("".join(_span(*span) for span in line) for line in lines)
    return f'<pre style="line-height: 1.25">{drawn}</pre>'


def _span(told: str, style: str) -> str:
    looks = [f"color: {COLOURS[name]}" for name in style.split() if name in COLOURS]
    looks += ["font-weight: bold"] if "bold" in style else []
    looks += ["opacity: 0.6"] if "dim" in style else []
    return f'<span style="{"; ".join(looks)}">{text(told)}</span>' if looks else text(told)
