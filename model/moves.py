"""Operations that only move numbers, as ggml's views, reshapes and writes do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Operation
from firstdiff.model.weights import Weight

Shape = tuple[int, ...]
Numbers = npt.NDArray[Any]


def reshaped(x: Numbers, *, shape: Shape, arithmetic: Arithmetic) -> Numbers:
    """The same numbers in another shape (``ggml_reshape``)."""
    return np.ascontiguousarray(x).reshape(shape)


def viewed(x: Numbers | Weight, *, start: int, steps: Shape, shape: Shape, arithmetic: Arithmetic) -> Numbers:
    """A view of what lies in memory (``ggml_view_4d``, ``ggml_permute``).

    Parameters
    ----------
    x
        All of the memory.
    start, steps
        Numbers before the first one, and from one to the next along each axis.
    shape
        Of the result.
    """
    flat = (x.values() if isinstance(x, Weight) else np.ascontiguousarray(x)).reshape(-1)
    return np.ascontiguousarray(strided(flat, start, steps, shape))


def put(into: Numbers, x: Numbers, *, start: int, steps: Shape, at: Shape, arithmetic: Arithmetic) -> Numbers:
    """Memory with numbers written to a view of shape `at` (``ggml_cpy`` and what else writes in place)."""
    y = np.array(into, order="C")
    strided(y.reshape(-1), start, steps, at)[...] = x.reshape(at)
    return y


def remembered(past: Numbers | None, *, shape: Shape, arithmetic: Arithmetic) -> Numbers:
    """What earlier steps left in memory; zeros before the first one, as llama.cpp clears it."""
    return np.zeros(shape, arithmetic.dtype) if past is None else past


def given(*, value: Numbers, arithmetic: Arithmetic) -> Numbers:
    """What llama.cpp computes outside of the graph: numbers of cells, positions, a mask."""
    return value


def heads_first(x: Array, *, heads: int, arithmetic: Arithmetic) -> Array:
    """Merged heads apart and before the tokens, [T, H * D] -> [H, T, D] (``ggml_permute``)."""
    return np.ascontiguousarray(x.reshape(len(x), heads, -1).transpose(1, 0, 2))


def head_columns(x: Array, *, start: int, stop: int, arithmetic: Arithmetic) -> Array:
    """Some numbers of each head, [S, H, D] -> [S, H, stop - start] (``ggml_view_4d``)."""
    return np.ascontiguousarray(x[..., start:stop])


def strided(flat: Numbers, start: int, steps: Shape, shape: Shape) -> Numbers:
    """Numbers at some places of flat memory.

    Raises
    ------
    ValueError
        Where places lie beyond it.
    """
    last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if 0 in shape:
        return np.empty(shape, flat.dtype)
    if start < 0 or min(steps) < 0 or last >= flat.size:
        raise ValueError(f"a view ends at number {last:,} of memory that has {flat.size:,}")
    return np.lib.stride_tricks.as_strided(flat[start:], shape, [step * flat.itemsize for step in steps])


def columns(x: Array, *, start: int, stop: int, heads: int | None = None, arithmetic: Arithmetic) -> Array:
    """Some columns of a product, [T, n] -> [T, stop - start], or [T, heads, D] (``ggml_view_2d``, ``ggml_view_3d``)."""
    y = arithmetic.widen(x)[:, start:stop]
    return np.ascontiguousarray(y if heads is None else y.reshape(len(y), heads, -1))


def gather(x: Array, rows: Array, *, arithmetic: Arithmetic) -> Array:
    """Rows of a value by number, [T, ...] and [n] -> [n, ...] (``ggml_get_rows``)."""
    return arithmetic.widen(x)[np.asarray(rows, np.int64)]


def merged(x: Array, *, arithmetic: Arithmetic) -> Array:
    """The heads of each token side by side, [T, H, D] -> [T, H * D] (``ggml_reshape_2d``)."""
    return arithmetic.widen(x).reshape(len(x), -1)


MOVES: frozenset[Operation] = frozenset(
    (columns, gather, merged, reshaped, viewed, put, remembered, given, heads_first, head_columns)
)
"""Every operation of this module: they round nothing, so a segment is no less exact for them."""
