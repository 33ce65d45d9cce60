"""The table of the figures."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from figures import Figure
from rich.markup import escape
from rich.table import Table

SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((1e9, "GB"), (1e6, "MB")),
    "GB/s": ((1.0, "GB/s"),),
}


def table(title: str, figures: Sequence[Figure]) -> Table:
    """Lay out one group of figures: median (min..max) of each column, and the ratio of the pairs."""
    layout = Table(
        title=title, title_justify="left", title_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0)
    )
    for heading, side in (("", "left"), ("firstdiff", "right"), ("beside", "left"), ("", "right")):
        layout.add_column(heading, justify=side, no_wrap=side == "right")
    for heading, side in (("ratio", "right"), ("aim", "left"), ("", "left")):
        layout.add_column(heading, justify=side, no_wrap=True)
    for figure in figures:
        layout.add_row(*map(escape, row(figure)))
    return layout


def row(figure: Figure) -> list[str]:
    """Return the cells of one figure."""
    aim = figure.aim.text if figure.aim else ""
    reached = {None: "", True: "reached", False: "MISSED"}[figure.reached]
    ratio = spread(figure.ratios, 1.0, "×") if figure.theirs else ""
    return [
        figure.name,
        measured(figure.ours, figure.unit),
        figure.beside,
        measured(figure.theirs, figure.unit) if figure.theirs else "",
        ratio,
        aim,
        reached,
    ]


def measured(values: Sequence[float], unit: str) -> str:
    """Write values in the largest unit in which their median is at least 1."""
    scales = SCALES[unit]
    scale, name = next((s for s in scales if median(values) >= s[0]), scales[-1])
    return spread(values, scale, f" {name}")


def spread(values: Sequence[float], scale: float, unit: str) -> str:
    """Write values as ``median unit (min..max)``; the median alone if there is one value."""
    low, middle, high = (f(values) / scale for f in (min, median, max))
    text = f"{digits(middle)}{unit}"
    return text if len(values) == 1 else f"{text} ({digits(low)}..{digits(high)})"


def digits(x: float) -> str:
    """Three digits, and those before the point."""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"
