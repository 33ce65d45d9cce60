"""How well a reading of a tensor fits what was computed, and which of several is taken."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from firstdiff.judging.layouts import SCORES
from firstdiff.model.arithmetic import Array
from firstdiff.model.attention import visible

PLAUSIBLE = 0.1
"""Median error up to which a layout can be the right one: quantised activations alone make up to 0.04."""

BETTER = 0.2
"""A layout other than the plain one is taken where it leaves less than this share of the plain one's median error."""

BEYOND = 2.0**15
"""What is infinite where more than this was computed may have been stored in float16, by a scale: it says nothing."""


def error_of(point: str, read: Array, computed: Array) -> float | None:
    """The norm of the difference over that of what was computed, where both are known.

    None where nothing is known, and where all is zero: zeros, such as those of padding, fit any other zeros.
    """
    seen: npt.NDArray[np.bool_] = np.isfinite(computed)
    if point in SCORES:
        seen &= visible(*computed.shape[-2:])
    seen &= ~(np.isnan(read) | (np.isinf(read) & (np.abs(computed) > BEYOND)))
    if not seen.any():
        return None
    c, r = (np.asarray(x[seen], np.float64) for x in (read, computed))
    if not np.isfinite(c).all():
        return float("inf")
    size, difference = float(np.linalg.norm(r)), float(np.linalg.norm(c - r))
    return difference / size if size else (float("inf") if difference else None)


def choice(middle: dict[int, float]) -> int:
    """Index of the layout to take: plain (0) unless its shape does not fit, or another one's numbers fit far better."""
    first = min(middle)
    best = min(middle, key=lambda index: middle[index])
    if best != first and middle[best] <= PLAUSIBLE and middle[best] < BETTER * middle[first]:
        return best
    return first
