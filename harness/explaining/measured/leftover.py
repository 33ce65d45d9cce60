"""Whether what a statement leaves looks like rounding: no token, feature or number that stands out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.alteration import laid_out
from firstdiff.explaining.measured.view import View
from firstdiff.judging.case import Case
from firstdiff.judging.floors import STORED
from firstdiff.model.arithmetic import Array
from firstdiff.model.rounding import round_to

Floats = npt.NDArray[np.float64]

AS_RIGHT = 3.0
"""How many times the error where the candidate is right a residual may be without being looked at."""

ROUNDED = 3e-7
"""What float32 leaves of any number, a factor's own rounding included."""

STANDING_OUT = 16.0
"""How many times the root mean square of what is left, or of one rounding of the number itself, a number may be off."""

DEVIATIONS = 10.0
"""Standard deviations of chance from which what is left goes with the numbers."""

BROADCAST = 8
"""How many times fewer numbers an operand has, each of which is in so many results."""

TAKEN = 0.05
"""The part of what is left that must go with the numbers. Errors of inputs, which a product mixes, do so a little."""


def is_rounding(view: View, given: Array, residual: float, *, turned: bool = False) -> bool:
    """Whether what a call `given` leaves of the candidate's numbers has no structure that a statement missed.

    Numbers that were rounded the other way within the operation stand out: where they are `turned`, none is looked for.
    """
    if residual <= max(AS_RIGHT * view.case.noise, ROUNDED) and not view.case.stored:
        return True
    flat, _ = laid_out(_as_stored(np.asarray(given, np.float64), view.case), view.case.site.point)
    counts = (view.result != 0) | (view.error != 0)
    laid = np.where(counts, flat.take(view.rows, view.token_axis), 0.0).astype(np.float64)
    left = view.result + view.error - laid
    if not np.isfinite(left).all():
        return True
    return (turned or not _stands_out(view, laid, left)) and not _systematic(view, laid, left)


def _as_stored(x: Floats, case: Case) -> Floats:
    """Numbers as the dump holds them: what is alike is rounded alike."""
    kind = "f16" if case.half else "bf16" if case.stored == STORED["bf16"] else None
    return np.asarray(round_to(x.astype(np.float32), kind), np.float64) if kind else x


def _stands_out(view: View, given: Floats, left: Floats) -> bool:
    rest = tuple(i for i in range(left.ndim) if i != view.token_axis)
    rms = np.sqrt(np.square(left).mean(rest, keepdims=True))
    own = view.case.stored * np.abs(given)
    return bool((np.abs(left) > STANDING_OUT * rms + own).any())


def _systematic(view: View, given: Floats, left: Floats) -> bool:
    """Whether what is left goes with the numbers: by one factor for all, or one for each token, or each head.

    If each number is off by itself, the sum of the products with the numbers is as large as the root of the sum of
    their squares. Features are not asked: tokens that are alike round alike, feature by feature.
    """
    if any(isinstance(x, np.ndarray) and BROADCAST * x.size <= given.size for x in view.call.inputs):
        return False  # one number of this operand, rounded, is in all results of a token
    scaled, error = given * view.scale, left * view.scale
    total = float(np.square(error).sum())
    for axis in (None, *range(left.ndim - 1)):
        rest = None if axis is None else tuple(i for i in range(left.ndim) if i != axis)
        sums = np.atleast_1d(np.square((scaled * error).sum(rest)))
        squares, size = (np.atleast_1d(np.square(x).sum(rest)) for x in (scaled * error, scaled))
        known = squares > 0
        if not known.any():
            continue
        ratio, taken = sums[known] / squares[known], float((sums[known] / size[known]).sum())
        if ratio.mean() > 1 + DEVIATIONS * np.sqrt(2 / ratio.size) and taken > TAKEN * total:
            return True
    return False
