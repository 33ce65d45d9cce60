"""What of an error is systematic, as no rounding is: a factor, or a linear map."""

from __future__ import annotations

import numpy as np

from firstdiff.model.arithmetic import Array
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call

ALIKE = 0.1
"""Sum of squared cosines of results from which errors can be asked whether they are as alike."""


def rest(candidate: Array, reference: Array, call: Call) -> float:
    """What is left of an error, relative to it, once the likeliest faults that no rounding makes are taken out.

    One factor a token (a wrong epsilon), one a dimension (a wrong weight); of products, a linear map: errors of two
    tokens that are as alike as their results come from a wrong matrix, since rounding errors are not alike.
    """
    c, r = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (candidate, reference))
    if not (np.isfinite(c).all() and np.isfinite(r).all()):
        return 0.0
    error = c - r
    size = float(np.linalg.norm(error))
    if size == 0:
        return 0.0
    rests = [_without(c, r, axis) / size for axis in (1, 0) if c.shape[axis] > 3]  # noqa: PLR2004 - fewer fit anything
    if call.op is linear and len(c) > 2:  # noqa: PLR2004
        rests.append((1.0 - _alike(error - r * _factor(error, r, 1), r)) / 2)  # it is recognised, not fitted
    return float(min(rests, default=1.0))


def _factor(x: Array, r: Array, axis: int) -> Array:
    with np.errstate(all="ignore"):
        factor: Array = np.nan_to_num((x * r).sum(axis, keepdims=True) / (r * r).sum(axis, keepdims=True))
    return factor


def _without(c: Array, r: Array, axis: int) -> float:
    """The norm of what one factor along an axis leaves."""
    return float(np.linalg.norm(c - r * _factor(c, r, axis)))


def _alike(error: Array, r: Array) -> float:
    """By how much the errors of two tokens are alike, where their results are: 1 for a wrong matrix, 0 for rounding."""
    pairs = np.triu_indices(len(r), 1)
    of_errors, of_results = (_cosines(x)[pairs] for x in (error, r))
    weight = float((of_results**2).sum())
    return float((of_errors * of_results).sum()) / weight if weight > ALIKE else 0.0


def _cosines(x: Array) -> Array:
    with np.errstate(all="ignore"):
        unit: Array = np.nan_to_num(x / np.linalg.norm(x, axis=1, keepdims=True))
    cosines: Array = unit @ unit.T
    return cosines
