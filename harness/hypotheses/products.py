"""A part of a product: some rows of its weight and some tokens, to try a hypothesis at in a hundredth of the time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.model.probe import Call


def cut(call: Call, rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64] | slice = slice(None)) -> Call:
    """A product of these rows of its weight alone, and of these tokens."""
    x, weight, *bias = call.inputs
    inputs = np.ascontiguousarray(x[tokens]), weight.pick(rows), *(b and b.pick(rows) for b in bias)
    attributes = {name: value for name, value in call.attributes.items() if name != "heads"}
    return replace(call, inputs=inputs, attributes=attributes)


def spread(n: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many indices of `n`, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(np.int64))
