"""NaN and infinities in a candidate's tensor: where they are, and what went in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import plural, token_axis
from firstdiff.explaining.describing.compared import Mask
from firstdiff.verdict.ranges import spans

F16_MOST = 65504.0
F16_OVER = 65520.0  # halfway to what would come next: from here on float16 rounds to infinity
F32_EXP = 88.7  # e to it is the most that float32 holds


@dataclass(frozen=True, slots=True)
class NotFinite:
    """What is said of them, and the numbers behind it."""

    says: str
    values: dict[str, Any]


def not_finite(
    candidate: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    axes: tuple[str, ...],
    seen: Mask | None,
    inputs: Iterable[tuple[str, npt.NDArray[Any]]],
) -> NotFinite | None:
    """Describe where the candidate has NaN or infinity and the reference a number."""
    broken = _broken(candidate, reference, seen)
    if not broken.any():
        return None
    nan, token = broken & np.isnan(candidate), token_axis(axes)
    kinds = [f"{int(m.sum()):,} {word}" for m, word in ((nan, "NaN"), (broken & ~nan, "infinite")) if m.any()]
    rest = tuple(i for i in range(broken.ndim) if i != token)
    tokens = np.flatnonzero(broken.any(rest))
    first = np.argwhere(np.moveaxis(broken, token, 0))[0]
    index = tuple(int(i) for i in np.insert(first[1:], token, first[0]))
    at = ", ".join(f"{name} {i}" for name, i in zip(axes, index, strict=True))
    seen = np.broadcast_to(True if seen is None else seen, broken.shape)
    says = f"{' and '.join(kinds)} of {np.count_nonzero(seen):,} values, the first at {at}"
    if len(tokens) < np.count_nonzero(seen.any(rest)):
        says += f"; only in {plural(axes[token])} {spans(tokens, broken.shape[token])}"
    told = [_input(name, _of_tokens(array, tokens, broken.shape, token)) for name, array in inputs if array.size]
    values = {"nan": int(nan.sum()), "infinite": int((broken & ~nan).sum()), "first": list(index)}
    return NotFinite("; ".join([says, *told]), values)


def beyond_f16(candidate: npt.NDArray[Any], reference: npt.NDArray[Any], seen: Mask | None) -> int | None:
    """How many values are infinite, if they are exactly those that float16 does not hold."""
    broken = _broken(candidate, reference, seen)
    large = np.isfinite(reference) & (np.abs(reference) >= F16_OVER)
    if seen is not None:
        large = large & seen
    same = bool((broken == large).all()) and not np.isnan(candidate[broken]).any()
    return int(large.sum()) if same and bool((np.sign(candidate[broken]) == np.sign(reference[broken])).all()) else None


def _broken(candidate: npt.NDArray[Any], reference: npt.NDArray[Any], seen: Mask | None) -> Mask:
    broken: Mask = np.isfinite(reference) & ~np.isfinite(candidate)
    return broken if seen is None else broken & seen


def _of_tokens(
    array: npt.NDArray[Any], tokens: npt.NDArray[np.intp], shape: tuple[int, ...], axis: int
) -> npt.NDArray[Any]:
    """The part of an input that belongs to some tokens, which lie along the output's axis or the first, if at all."""
    if array.ndim == len(shape) and array.shape[: axis + 1] == shape[: axis + 1]:
        return array.take(tokens, axis)
    return array[tokens] if array.ndim > 1 and array.shape[0] == shape[axis] else array


def _input(name: str, rows: npt.NDArray[Any]) -> str:
    """What an input looked like. Minus infinity beside finite numbers is how scores are hidden."""
    finite = np.isfinite(rows)
    bad = ~finite & ~(np.isneginf(rows) & finite.any(-1, keepdims=True))
    if bad.any():
        nan = int(np.isnan(rows).sum())
        words = [f"{n:,} {word}" for n, word in ((nan, "NaN"), (int(bad.sum()) - nan, "infinite")) if n]
        return f"{name} holds {' and '.join(words)} already"
    wide = np.where(finite, rows, 0.0).astype(np.float64)
    most = float(np.abs(wide).max())
    says = f"{name} is finite, the largest {most:.2g}"
    if most >= F16_OVER:
        return f"{says}, beyond float16's 65504"
    if (squares := float((wide**2).sum(-1).max())) >= F16_OVER:
        says += f", its squares sum up to {squares:.2g} in a row, beyond float16's 65504"
    if most > F32_EXP:
        says += f", beyond the {F32_EXP} up to which float32 holds an exponential"
    zero = ~wide.any(-1)
    return f"{says}, {int(zero.sum()):,} of {zero.size:,} rows all zero" if zero.any() else says
