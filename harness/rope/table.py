"""What rope should do: the inverse frequency, angle, cosine and sine of every pair at given positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.model.engine import Model
from firstdiff.model.rope import angles
from firstdiff.rope.turns import rotation_of, turn_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RopeTable:
    """Angles as the model's file asks for them, in float64.

    Parameters
    ----------
    head_dim, base, scale, factors
        Numbers of a head that are turned, base of the frequencies, what positions are multiplied by, and whether
        the file has frequency factors.
    positions
        Absolute positions [T].
    frequencies
        Radians a position of each pair, scale and factors included [head_dim / 2].
    theta
        Angles in radians [T, head_dim / 2].
    """

    head_dim: int
    base: float
    scale: float
    factors: bool
    positions: tuple[int, ...]
    frequencies: Floats
    theta: Floats

    def plain(self, pairs: Sequence[int] | None = None) -> dict[str, Any]:
        """For JSON; `pairs` selects some of them."""
        chosen = list(range(len(self.frequencies)) if pairs is None else pairs)
        return {
            "head_dim": self.head_dim,
            "base": self.base,
            "scale": self.scale,
            "factors": self.factors,
            "positions": list(self.positions),
            "pairs": chosen,
            "inverse_frequencies": self.frequencies[chosen].tolist(),
            "angles": self.theta[:, chosen].tolist(),
            "cos": np.cos(self.theta[:, chosen]).tolist(),
            "sin": np.sin(self.theta[:, chosen]).tolist(),
        }


def rope_table(model: Model, positions: Sequence[int]) -> RopeTable:
    """The angles of every pair of a head at some positions, as the model's file asks for them."""
    rotation, turn = rotation_of(model), turn_of(model)
    return RopeTable(
        head_dim=rotation.dim,
        base=rotation.base,
        scale=rotation.scale,
        factors=turn["factors"] is not None,
        positions=tuple(positions),
        frequencies=angles([1], rotation.dim, **turn)[0],
        theta=angles(positions, rotation.dim, **turn),
    )


def describe(table: RopeTable, pairs: Sequence[int] | None = None) -> str:
    """One line for each pair and position, under the numbers that make them."""
    chosen = range(len(table.frequencies)) if pairs is None else pairs
    extra = "" if table.scale == 1 else f", positions times {table.scale:.7g}"
    extra += ", with frequency factors" if table.factors else ""
    lines = [
        f"head_dim {table.head_dim}, base {table.base:.7g}{extra}",
        "",
        f"{'position':>8} {'pair':>5} {'inverse frequency':>18} {'angle':>14} {'cos':>12} {'sin':>12}",
    ]
    for position, theta in zip(table.positions, table.theta, strict=True):
        lines += [
            f"{position:8} {i:5} {table.frequencies[i]:18.9g} {theta[i]:14.9g} {np.cos(theta[i]):12.8f} "
            f"{np.sin(theta[i]):12.8f}"
            for i in chosen
        ]
    return "\n".join(lines)
