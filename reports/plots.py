"""Figures of a verdict and of tensors, drawn from records and arrays alone.

No state is shared: every figure is its own, without pyplot. Colours are Okabe and Ito's, and maps are cividis, which
colour-blind people read too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.reports.map import MARKS
from firstdiff.reports.words import counted, number
from firstdiff.verdict import SiteVerdict, Status, Verdict

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm, PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image  # which matplotlib brings
except ModuleNotFoundError:
    raise ImportError("firstdiff.plot needs matplotlib: pip install 'firstdiff[notebook]'") from None

Floats = npt.NDArray[np.floating]

BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#7f7f7f"
DOTS_PER_INCH = 80  # a figure of a notebook is 20 to 60 kB of PNG
LEAST, MOST = 1e-9, 1.0  # of local errors: below is rounding's own, above is no resemblance
POINTS = 20_000  # of a scatter plot: more are one blot, and slow
LABELLED = 40  # tokens that have room for their text


class Drawn(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        """The picture in 256 colours, which a third of the bytes hold."""
        drawn, small = BytesIO(), BytesIO()
        self.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
        Image.open(drawn).convert("RGB").quantize(256).save(small, format="png", optimize=True)
        return small.getvalue()


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    drawn = Drawn(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(drawn)
    return drawn


# A verdict


def heatmap(verdict: Verdict, step: int) -> Figure:
    """Layers × points of a step by local error, and a strip of the points outside the layers below."""
    sites = [s for s in verdict.sites if s.step == step]
    inside = [s for s in sites if s.layer is not None]
    outside = [s for s in sites if s.layer is None]
    points = list(dict.fromkeys(s.point for s in inside))
    layers = sorted({s.layer for s in inside if s.layer is not None})
    drawn = figure(max(6.0, 0.36 * len(points) + 2.5), max(3.6, 0.19 * len(layers) + 2.8))
    axes, strip = drawn.subplots(2, 1, height_ratios=[max(len(layers), 4), 1.2])
    places = {(s.point, s.layer): s for s in inside}
    grid = [[places.get((point, layer)) for point in points] for layer in layers]
    image = _cells(axes, grid, points)
    axes.set_yticks(range(len(layers)), [str(n) for n in layers], fontsize=7)
    axes.set_ylabel("layer")
    axes.set_title(f"Local error of every site of step {step}")
    _cells(strip, [list(outside)], [s.point for s in outside])
    strip.set_yticks([])
    strip.set_ylabel("outside", rotation=0, ha="right", va="center")
    height = drawn.get_figheight()
    bar = drawn.colorbar(image, ax=[axes, strip], extend="both", pad=0.02, aspect=4 * height, extendfrac=0.25 / height)
    bar.set_label("local error (relative)")
    used = [s for s in Status if s is not Status.AGREES and any(site.status is s for site in sites)]
    drawn.supxlabel("   ".join([*(f"{MARKS[s][0]} {s.value}" for s in used), "no mark: agrees"]), fontsize=9)
    return drawn


def _cells(axes: Axes, grid: Sequence[Sequence[SiteVerdict | None]], points: Sequence[str]) -> Any:  # noqa: ANN401
    """Cells of sites; grey where there is no error to show, with the mark of a status that is worth one."""
    errors = np.array([[_shown(s) for s in row] for row in grid], np.float64)
    norm = LogNorm(LEAST, MOST)
    axes.set_facecolor("#d9d9d9")
    image = axes.imshow(np.ma.masked_invalid(errors), cmap="cividis", norm=norm, aspect="auto", interpolation="nearest")
    for i, row in enumerate(grid):
        for j, site in enumerate(row):
            if site is not None and site.status is not Status.AGREES:
                dark = np.isfinite(errors[i, j]) and norm(errors[i, j]) < 0.5  # noqa: PLR2004 - half of the scale
                mark, weight = MARKS[site.status][0], "bold" if site.status is Status.DIVERGES else "normal"
                axes.text(
                    j, i, mark, ha="center", va="center", fontsize=7, weight=weight, color="white" if dark else "black"
                )
    axes.set_xticks(range(len(points)), points, rotation=90 if len(points) > 6 else 0, fontsize=8)  # noqa: PLR2004
    return image


def _shown(site: SiteVerdict | None) -> float:
    if site is None or site.local_error is None:
        return float("nan")
    return float(np.clip(site.local_error, LEAST, 2 * MOST))


def depth(verdict: Verdict, step: int) -> Figure:
    """Worst local error, its floor, and the drift of the layers' outputs."""
    worst: dict[int, float] = defaultdict(float)
    floor: dict[int, float] = defaultdict(float)
    drift: dict[int, float] = {}
    for s in verdict.sites:
        if s.step != step or s.layer is None:
            continue
        if s.local_error is not None:
            worst[s.layer] = max(worst[s.layer], s.local_error)
            floor[s.layer] = max(floor[s.layer], s.floor or 0.0)
        if s.point == "l_out" and s.drift is not None:
            drift[s.layer] = s.drift
    drawn = figure(7, 3.8)
    axes = drawn.subplots()
    _line(axes, drift, ORANGE, "s", f"drift of l_out, against {verdict.against}")
    _line(axes, worst, BLUE, "o", f"worst local error of the layer (0 is drawn at {LEAST:g})")
    _line(axes, floor, GREY, "", "floor", linestyle="--")
    wrong = {
        s.layer: s.local_error for s in verdict.diverging if s.step == step and s.layer is not None and s.local_error
    }
    if wrong:
        at, errors = list(wrong), [min(worst[n], 1e3) for n in wrong]
        axes.plot(at, errors, "X", color=RED, markersize=9, label="a site of the layer diverges", linestyle="")
    _logarithmic(axes)
    axes.set_xlabel("layer")
    axes.set_ylabel("relative error")
    axes.set_title(f"Error over depth, step {step}")
    _legend(drawn)
    return drawn


def _line(axes: Axes, values: dict[int, float], colour: str, marker: str, label: str, linestyle: str = "-") -> None:
    if values:
        at = sorted(values)
        shown = [min(max(values[n], LEAST), 1e3) for n in at]
        axes.plot(at, shown, marker=marker, markersize=4, color=colour, linestyle=linestyle, label=label)


# Tensors


def errors(values: Floats, *, at: Sequence[int], axis: str, title: str, of: str, floor: float | None) -> Figure:
    """Relative errors along one axis; what is not finite is marked at the top, exact zeros at the bottom."""
    drawn = figure(7, 3.4)
    axes = drawn.subplots()
    shown = np.clip(np.where(np.isfinite(values), values, np.inf), LEAST, 1e3)
    axes.plot(at, shown, "o", markersize=4, color=BLUE, label=f"against {of}")
    exact = [x for x, v in zip(at, values, strict=True) if v == 0]
    if exact:
        axes.plot(exact, [LEAST] * len(exact), "v", color=GREEN, label=f"exactly equal (drawn at {LEAST:g})")
    broken = [x for x, v in zip(at, values, strict=True) if not np.isfinite(v)]
    if broken:
        axes.plot(broken, [1e3] * len(broken), "^", color=RED, label="NaN, infinity, or in place of zeros")
    if floor is not None:
        axes.axhline(floor, color=GREY, linestyle="--", label=f"floor {number(floor)}")
    _logarithmic(axes)
    axes.set_xlabel(axis)
    axes.set_ylabel("relative error")
    axes.set_title(title)
    _legend(drawn)
    return drawn


def _legend(drawn: Figure) -> None:
    """Below the axes, where nothing is hidden by it."""
    drawn.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.grid(visible=True, axis="y", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def histogram(candidate: Floats, other: Floats, *, title: str, called: str, of: str) -> Figure:
    """Both distributions over common bins, counts on a log scale."""
    drawn = figure(7, 3.4)
    axes = drawn.subplots()
    finite = np.concatenate([x[np.isfinite(x)] for x in (candidate, other)])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    bins = np.linspace(low, high if high > low else low + 1.0, 101).tolist()
    for values, colour, label, style in ((other, BLUE, of, "-"), (candidate, ORANGE, called, "--")):
        lost = int((~np.isfinite(values)).sum())
        beside = f" (and {number(lost)} not finite)" if lost else ""
        axes.hist(
            values[np.isfinite(values)],
            bins,
            histtype="step",
            color=colour,
            linestyle=style,
            linewidth=1.5,
            label=label + beside,
        )
    axes.set_yscale("log")
    axes.set_xlabel("value")
    axes.set_ylabel("number of elements")
    axes.set_title(title)
    _legend(drawn)
    return drawn


def scatter(candidate: Floats, other: Floats, *, title: str, called: str, of: str) -> Figure:
    """Each element as a point; of many, the worst ones and an even choice of the others."""
    finite = np.isfinite(candidate) & np.isfinite(other)
    c, r = candidate[finite], other[finite]
    chosen = np.arange(c.size)
    if c.size > POINTS:
        worst = np.argsort(-np.abs(c - r), kind="stable")[: POINTS // 10]
        chosen = np.union1d(worst, np.linspace(0, c.size - 1, POINTS - worst.size).astype(np.int64))
    drawn = figure(5.2, 5)
    axes = drawn.subplots()
    few = f"{chosen.size:,} of " if chosen.size < candidate.size else ""
    axes.plot(
        r[chosen], c[chosen], ".", markersize=3, alpha=0.5, color=BLUE, rasterized=True,
        label=f"{few}{counted(candidate.size, 'element')}",
    )  # fmt: skip
    if c.size:
        ends = [min(c.min(), r.min()), max(c.max(), r.max())]
        axes.plot(ends, ends, color=RED, linewidth=1, label="equal")
    axes.set_xlabel(of)
    axes.set_ylabel(called)
    axes.set_title(title)
    _legend(drawn)
    return drawn


def logits(tokens: Sequence[int], candidate: Floats, other: Floats, *, step: int, called: str, of: str) -> Figure:
    """Logits of some tokens, largest of the other's first; each engine's top token is marked."""
    drawn = figure(7, 0.3 * len(tokens) + 1.9)
    axes = drawn.subplots()
    rows = np.arange(len(tokens))
    axes.hlines(rows, np.minimum(candidate, other), np.maximum(candidate, other), color="#c0c0c0", zorder=1)
    for values, colour, marker, label in ((other, BLUE, "o", of), (candidate, ORANGE, "s", called)):
        axes.plot(values, rows, marker, color=colour, markersize=6, label=label)
        top = int(np.argmax(values))
        axes.plot(values[top], top, "o", color=colour, markersize=13, markerfacecolor="none", label=f"top-1 of {label}")
    axes.set_yticks(rows, [str(t) for t in tokens])
    axes.invert_yaxis()
    axes.grid(visible=True, axis="y", color="#e5e5e5")
    axes.set_axisbelow(True)
    axes.set_xlabel("logit")
    axes.set_ylabel("token id")
    axes.set_title(f"Largest logits of the last token, step {step}")
    _legend(drawn)
    return drawn


def attention(weights: Floats, *, title: str, first: int, pieces: Sequence[str]) -> Figure:
    """Weights of one head [query, key]; keys that a query must not see are grey."""
    queries, keys = weights.shape
    hidden = np.arange(keys)[None, :] > first + np.arange(queries)[:, None]
    drawn = figure(5.6, 4.8)
    axes = drawn.subplots()
    axes.set_facecolor("#d9d9d9")
    seen = np.ma.masked_array(weights, hidden & (weights == 0))
    image = axes.imshow(seen, cmap="cividis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest", aspect="auto")
    drawn.colorbar(image, ax=axes).set_label("attention weight (square root scale)")
    if len(pieces) == keys <= LABELLED:
        labels = [piece.replace("\n", "⏎").replace("$", r"\$") for piece in pieces]
        axes.set_xticks(range(keys), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(queries), labels[first : first + queries], fontsize=7)
    elif queries <= LABELLED:
        axes.set_yticks(range(queries), [str(first + i) for i in range(queries)], fontsize=7)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    axes.set_title(title)
    return drawn
