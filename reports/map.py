"""The map of a verdict: a row a layer, a column a point, in execution order, and a mark for each status.

Layers that look alike share a row, steps that look alike are drawn once. As data, and as lines of plain spans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from firstdiff.dumps.points import POINTS
from firstdiff.reports.words import all_in, named_steps
from firstdiff.verdict import Status, Verdict

Pattern = dict[tuple[int | None, str], Status]
"""The statuses of one step by layer and point, in execution order."""

Line = list[tuple[str, str]]
"""Words of one line, each with its style: a color, ``bold`` or ``dim``, or none."""

MARKS = {
    Status.AGREES: ("·", "green"),
    Status.INHERITS: ("~", "yellow"),
    Status.DIVERGES: ("X", "bold red"),
    Status.NOT_RECORDED: ("-", "dim"),
    Status.NOT_COMPARABLE: ("?", "magenta"),
}
"""One character and one style for each status."""

LAYERS = 40  # rows of the map: a screen, where no two neighbours are alike
MARGIN = "layer "

# The map as data.


@dataclass(frozen=True, slots=True)
class Drawn:
    """A step that is drawn, and the later ones that look like it."""

    step: int
    pattern: Pattern
    same: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Neighbouring layers that look alike: the status of each column's point, None where they do not hold it."""

    first: int | None
    last: int | None
    statuses: tuple[Status | None, ...]  # [column]


def drawn(verdict: Verdict) -> tuple[list[Drawn], list[int]]:
    """Step 0 and the first step that differs from it, and the steps that look like neither."""
    patterns: dict[int, Pattern] = defaultdict(dict)
    for site in verdict.sites:
        patterns[site.step][site.layer, site.point] = site.status
    alike: list[tuple[Pattern, list[int]]] = []
    others: list[int] = []
    for step, pattern in patterns.items():
        known = next((steps for other, steps in alike if other == pattern), None)
        if known is not None:
            known.append(step)
        elif len(alike) < 2:  # noqa: PLR2004 - what is right, and what goes wrong
            alike.append((pattern, [step]))
        else:
            others.append(step)
    return [Drawn(step, pattern, tuple(same)) for pattern, (step, *same) in alike], others


def parts(pattern: Pattern) -> list[Pattern]:
    """Cut a step into its layers, and the points outside them that stand before or after, as they are executed."""
    groups = groupby(pattern, key=lambda key: key[0] is None)
    return [{key: pattern[key] for key in keys} for _, keys in groups]


def columns(part: Pattern) -> list[str]:
    """Points of any layer in execution order, where layers differ in what they hold."""
    points: list[str] = []
    for _, keys in groupby(part, key=lambda key: key[0]):
        after = 0
        for _, point in keys:
            if point not in points:
                points.insert(after, point)
            after = points.index(point) + 1
    return points


def folded(part: Pattern, points: Sequence[str]) -> list[Row]:
    """Rows of some columns; neighbouring layers that look alike share one."""
    layers = dict.fromkeys(layer for layer, _ in part)
    rows: list[Row] = []
    for statuses, group in groupby(layers, lambda n: tuple(part.get((n, point)) for point in points)):
        alike = list(group)
        rows.append(Row(alike[0], alike[-1], statuses))
    return rows


def label(point: str) -> tuple[str, str]:
    """The two lines of a point's heading; a name that the table does not have is cut at its first "_"."""
    if point in POINTS:
        return POINTS[point].heading
    name, _, rest = point.removeprefix("ffn_" if point.startswith("ffn_moe_") else "").partition("_")
    return (name, rest) if rest else ("", name)


# The map as text.


def lines(verdict: Verdict, width: int, where: str | None = None) -> list[Line]:
    """The map in a number of columns; none of a verdict where nothing was recorded.

    `where` is the name of ``verdict.json``, for what is left out here.
    """
    if all(s.status is Status.NOT_RECORDED for s in verdict.sites):
        return []
    shown, others = drawn(verdict)
    told = [_legend({status for step in shown for status in step.pattern.values()})]
    for i, step in enumerate(shown):
        if i:
            told.append([])
        told += [[(f"Step {step.step}", "bold")], *_step(step.pattern, width, where)]
        if step.same:
            told.append([(f"{named_steps(step.same)}: the same.", "")])
    if others:
        told.append([(f"{named_steps(others)}: other statuses{all_in(where)}.", "")])
    return told


def _legend(used: set[Status]) -> Line:
    return _spaced([(f"{MARKS[s][0]} {s}", MARKS[s][1])] for s in Status if s in used)


def _spaced(words: Iterable[Line]) -> Line:
    """Words on one line, two blanks apart."""
    return [span for word in words for span in (("  ", ""), *word)][1:]


def _step(pattern: Pattern, width: int, where: str | None) -> list[Line]:
    told: list[Line] = []
    for part in parts(pattern):
        if any(layer is None for layer, _ in part):
            told.append(_spaced([(f"{point} ", ""), MARKS[status]] for (_, point), status in part.items()))
        else:
            for band in _bands(columns(part), width - len(MARGIN)):
                told += _band(part, band, where)
    return told


def _bands(points: Iterable[str], room: int) -> list[list[str]]:
    """Cut the columns into as few bands as fit the page."""
    bands: list[list[str]] = []
    for point in points:
        if bands and len(_headings([*bands[-1], point])[0]) <= room:
            bands[-1].append(point)
        else:
            bands.append([point])
    return bands


def _headings(points: Iterable[str]) -> tuple[str, str, list[int]]:
    """Two heading lines, and the column of each point's mark.

    Neighbours that share the upper line stand under one: ``cur──`` over ``Q K V``.
    """
    upper = lower = ""
    marks: list[int] = []
    for top, group in groupby(map(label, points), key=lambda heading: heading[0]):
        leaves = [leaf for _, leaf in group]
        spare = max(0, len(top) - len(" ".join(leaves)))
        gap = 1 + spare // max(1, len(leaves) - 1)
        start = len(lower)
        for leaf in leaves:
            marks.append(len(lower) + (len(leaf) - 1) // 2)
            lower += leaf + " " * gap
        size = max(len(top), len(lower.rstrip()) - start)
        upper += top.ljust(size, "─" if top and len(leaves) > 1 else " ") + " "
        lower = lower[: start + size].ljust(start + size) + " "
    return upper[:-1], lower[:-1], marks


def _band(part: Pattern, points: Sequence[str], where: str | None) -> list[Line]:
    """Headings and rows of some columns."""
    upper, lower, places = _headings(points)
    told: list[Line] = [[(" " * len(MARGIN) + upper, "dim")], [(MARGIN + lower, "dim")]]
    rows = folded(part, points)
    for row in rows[:LAYERS]:
        name = f"{row.first}" if row.first == row.last else f"{row.first}-{row.last}"
        line = [(name.ljust(len(MARGIN)), "")]
        end = len(line[0][0])
        for status, place in zip(row.statuses, places, strict=True):
            column = len(MARGIN) + place
            line += [(" " * (column - end), ""), MARKS[status] if status else (" ", "")]
            end = max(column, end) + 1
        told.append(line)
    if len(rows) > LAYERS:
        told.append([(f"and {len(rows) - LAYERS} more rows{all_in(where)}", "")])
    return told
