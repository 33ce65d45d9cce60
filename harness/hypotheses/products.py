"""A part of a product: some rows of its weight and some tokens, to try a hypothesis at in a hundredth of the time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from firstdiff.model.operations import Derived, Operation, linear
from firstdiff.model.probe import Call


def cut(call: Call, rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64] | slice = slice(None)) -> Call:
    """A product of these rows of its weight alone, and of these tokens."""
    x, weight, bias = (call.argument(name) for name in ("x", "weight", "bias"))
    kept = np.ascontiguousarray(x[tokens])
    return call.with_arguments(x=kept, weight=weight.pick(rows), bias=bias and bias.pick(rows), heads=None)


def rowwise(op: Operation) -> bool:
    """Whether each result of an operation needs only its own row of the weight."""
    return op.rowwise if isinstance(op, Derived) else op is linear


def spread(n: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many indices of `n`, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(np.int64))
