"""What rope should do: the inverse frequency, angle, cosine and sine of every pair at given positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.align import aligned
from firstdiff.dumps import Trace, open_trace
from firstdiff.errors import UsageError
from firstdiff.model.engine import Model, open_model
from firstdiff.model.rope import angles
from firstdiff.rope_fit import FittedAngles, fitted_angles, turn_of
from firstdiff.rope_fit import describe as describe_fit

Floats = npt.NDArray[np.float64]

MOST_POSITION = 2**31 - 1  # llama_pos is int32


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
    rotation, turn = turn_of(model)
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


def rope_command(
    *,
    model: Path,
    positions: Sequence[int] | None = None,
    pairs: Sequence[int] | None = None,
    trace: Path | None = None,
    names: str | None = None,
    layer: int = 0,
) -> tuple[str, dict[str, Any], int]:
    """``firstdiff rope``: the expected table, or the angles of a candidate's trace beside the expected ones.

    Names and layouts of the trace are understood as :func:`firstdiff.run.judge_candidates` understands them.

    Returns
    -------
    Text, JSON, and exit code: 1 where the candidate turns by other angles.

    Raises
    ------
    UsageError
        For a position, pair or layer that there is not, or a trace without what is fitted.
    ModelError, TraceError
        For files that cannot be read.
    """
    opened = open_model(model)
    half = opened.hp.head_dim // 2
    if (pair := next((p for p in pairs or () if not 0 <= p < half), None)) is not None:
        raise UsageError(f"--pairs {pair}: a head of {opened.hp.head_dim} has pairs 0 to {half - 1}")
    if (where := next((p for p in positions or () if not 0 <= p <= MOST_POSITION), None)) is not None:
        raise UsageError(f"--positions {where}: a position is a whole number from 0 to {MOST_POSITION:,}")
    if trace is None:
        table = rope_table(opened, (0, 1, 2) if positions is None else positions)
        return describe(table, pairs), table.plain(pairs), 0
    fits = fits_of(opened, open_trace(trace, names=names), layer)
    text = "\n\n".join(describe_fit(fit, positions, pairs) for fit in fits)
    return text, {fit.point: fit.plain() for fit in fits}, 0 if all(fit.agrees for fit in fits) else 1


def fits_of(model: Model, trace: Trace, layer: int) -> tuple[FittedAngles, ...]:
    """The fits of Q and K at one layer.

    Raises
    ------
    UsageError
        For a layer that there is not, or where neither Q nor K is recorded before and after the rotation.
    """
    if not 0 <= layer < model.hp.n_layer:
        raise UsageError(f"--layer {layer}: {model.gguf.path.name} has layers 0 to {model.hp.n_layer - 1}")
    alignment = aligned(model, trace)
    fits = [fitted_angles(model, trace, layer, point, alignment=alignment) for point in ("Qcur", "Kcur")]
    found = tuple(fit for fit in fits if fit is not None)
    if not found:
        raise UsageError(
            f"{trace.path}: holds neither Qcur-{layer} with Qcur_rope-{layer} nor Kcur-{layer} with Kcur_rope-{layer} "
            "in shapes that fit: record them before and after the rotation"
        )
    return found
