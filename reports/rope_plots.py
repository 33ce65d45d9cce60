"""Figures of rope: frequencies, angles, what an engine did, and how alike positions are."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from firstdiff.reports.plots import BLUE, ORANGE, Floats, figure

TURN = 2 * np.pi
LINE = 110  # characters of 10 points: 130 of them fill 9 inches
LEAST = 0.01  # radians that the colours span at least: below is rounding


def angles(frequencies: Floats, theta: Floats, positions: Sequence[int], *, base: float) -> Figure:
    """Inverse frequencies [D / 2], and angles [T, D / 2] as what is left of whole turns."""
    drawn = figure(9, 3.6)
    left, right = drawn.subplots(1, 2)
    _frequencies(left, frequencies, "as the file asks")
    left.legend(fontsize=8)
    _angles(right, theta, positions, f"Angles at {len(positions)} positions, base {base:g}")
    return drawn


def fitted(
    expected: Floats, found: Floats, theta: Floats, turned: Floats, positions: Sequence[int], *, layer: int, says: str
) -> Figure:
    """Frequencies as asked for and as fitted, and by how much the engine's angles differ [T, D / 2]."""
    drawn = figure(9, 3.8)
    left, right = drawn.subplots(1, 2)
    _frequencies(left, expected, "as the file asks")
    left.plot(np.abs(found), "x", markersize=4, color=ORANGE, label=f"fitted to the trace at layer {layer}")
    left.legend(fontsize=8)
    difference = np.angle(np.exp(1j * (turned - theta)))
    most = max(float(np.abs(difference).max()), LEAST)
    image = right.imshow(difference, cmap="PuOr", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    right.figure.colorbar(image, ax=right).set_label("fitted less expected angle (radians)")
    _positions(right, positions)
    right.set_xlabel("pair")
    right.set_title("Angles less those asked for")
    drawn.suptitle(textwrap.fill(f"{says[:1].upper()}{says[1:]}.", LINE), fontsize=10)
    return drawn


def similarity(values: Floats, positions: Sequence[int], *, base: float) -> Figure:
    """The mean cosine of all pairs' angle differences, for every two positions [T, T]."""
    drawn = figure(9, 4)
    left, right = drawn.subplots(1, 2)
    extent = (positions[0] - 0.5, positions[-1] + 0.5, positions[-1] + 0.5, positions[0] - 0.5)
    image = left.imshow(values, cmap="cividis", vmin=min(0.0, float(values.min())), vmax=1, extent=extent)
    drawn.colorbar(image, ax=left).set_label("mean cosine of the pairs")
    left.set_xlabel("position n")
    left.set_ylabel("position m")
    left.set_title(f"Similarity of positions, base {base:g}")
    for row, colour, style in ((0, BLUE, "-"), (len(positions) // 2, ORANGE, "--")):
        distance = np.asarray(positions[row:]) - positions[row]
        right.plot(distance, values[row, row:], style, color=colour, label=f"from position {positions[row]}")
    right.set_xlabel("distance n − m (positions)")
    right.set_ylabel("mean cosine of the pairs")
    right.set_title("It depends on the distance alone")
    right.legend(fontsize=8)
    return drawn


def _frequencies(axes: Axes, frequencies: Floats, label: str) -> None:
    axes.semilogy(frequencies, "o", markersize=6, color=BLUE, label=label)
    axes.set_xlabel("pair")
    axes.set_ylabel("inverse frequency (radians a position)")
    axes.set_title("Inverse frequencies")


def _angles(axes: Axes, theta: Floats, positions: Sequence[int], title: str) -> None:
    image = axes.imshow(np.mod(theta, TURN), cmap="twilight", vmin=0, vmax=TURN, aspect="auto", interpolation="nearest")
    bar = axes.figure.colorbar(image, ax=axes, ticks=[0, np.pi, TURN])
    bar.ax.set_yticklabels(["0", "π", "2π"])
    bar.set_label("angle, whole turns left out (radians)")
    _positions(axes, positions)
    axes.set_xlabel("pair")
    axes.set_title(title)


def _positions(axes: Axes, positions: Sequence[int]) -> None:
    """Label rows by position."""
    rows = np.unique(np.linspace(0, len(positions) - 1, min(len(positions), 8)).astype(int))
    axes.set_yticks(rows, [str(positions[i]) for i in rows])
    axes.set_ylabel("position")
