"""Statistics of a file's weights: is a norm's rms of 0.046 wrong? No, if it is what the file holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.errors import UsageError
from firstdiff.model.engine import Model
from firstdiff.model.quants import SUPPORTED
from firstdiff.model.weights import Weight

Rows = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of finite values: root mean square, least, greatest and mean; and how many are NaN or infinite."""

    rms: float
    min: float
    max: float
    mean: float
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class WeightStatistics:
    """One tensor of the file; `statistics` is None for a type that is not dequantised."""

    name: str
    kind: str
    shape: tuple[int, ...]
    statistics: Statistics | None

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def statistics_of(parts: Iterable[Rows]) -> Statistics:
    """Statistics of an array that comes in parts, summed in float64."""
    count, total, squares, least, greatest, broken = 0, 0.0, 0.0, np.inf, -np.inf, 0
    for part in parts:
        finite = part.ravel()
        good = np.isfinite(finite)
        if not good.all():
            broken += int((~good).sum())
            finite = finite[good]
        if finite.size:
            wide = finite.astype(np.float64)
            count += wide.size
            total += float(wide.sum())
            squares += float(wide @ wide)
            least, greatest = min(least, float(wide.min())), max(greatest, float(wide.max()))
    if not count:
        return Statistics(np.nan, np.nan, np.nan, np.nan, broken)
    return Statistics(float(np.sqrt(squares / count)), least, greatest, total / count, broken)


def parts(weight: Weight) -> Iterator[tuple[slice, Rows]]:
    """The values of a weight, float32, some rows at a time, each with their place among all values in a row."""
    if len(weight.shape) == 1:
        yield slice(0, weight.shape[0]), weight.values()
        return
    n = weight.shape[-1]
    for start, stop in weight.chunks():
        yield slice(start * n, stop * n), weight.rows(start, stop)


def weight_statistics(model: Model, patterns: Sequence[str] = ()) -> tuple[WeightStatistics, ...]:
    """Statistics of the tensors of a file whose names match, such as ``blk.*.attn_norm.weight`` or ``attn_norm``.

    Parameters
    ----------
    model
        The model.
    patterns
        Shell patterns, or parts of a name; all tensors, if none is given.

    Raises
    ------
    UsageError
        For a pattern that matches no tensor.
    """
    names = list(model.gguf.tensors)
    chosen: dict[str, None] = {} if patterns else dict.fromkeys(names)
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern)] or [name for name in names if pattern in name]
        if not found:
            raise UsageError(f"{pattern!r:.80}: no tensor of {model.gguf.path.name} has this name: try '*norm*'")
        chosen |= dict.fromkeys(found)
    return tuple(_of(model.weights[name]) for name in chosen)


def _of(weight: Weight) -> WeightStatistics:
    known = weight.kind.name in SUPPORTED
    statistics = statistics_of(part for _, part in parts(weight)) if known else None
    return WeightStatistics(weight.name, weight.kind.name, weight.shape, statistics)


def describe(found: Sequence[WeightStatistics]) -> str:
    """One line a tensor."""
    width = max((len(w.name) for w in found), default=4)
    lines = [f"{'name':{width}} {'type':5} {'shape':>16} {'rms':>11} {'min':>11} {'max':>11} {'mean':>11}"]
    for w in found:
        shape = " × ".join(map(str, w.shape))
        lines.append(f"{w.name:{width}} {w.kind:5} {shape:>16} {numbers(w.statistics)}")
    return "\n".join(lines)


def numbers(s: Statistics | None) -> str:
    """Rms, least, greatest and mean in columns."""
    if s is None:
        return "(a type that is not dequantised)"
    broken = f"  {s.not_finite:,} NaN or infinite" if s.not_finite else ""
    return f"{s.rms:11.5g} {s.min:11.5g} {s.max:11.5g} {s.mean:11.5g}{broken}"
