"""Operations that move, choose or make up numbers (ggml/src/ggml-cpu/ops.cpp)."""

from __future__ import annotations

import numpy as np

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.graph.elementwise import tiled
from firstdiff.model.graph.products import dense
from firstdiff.model.weights import Weight

Ints = np.ndarray[tuple[int, ...], np.dtype[np.integer]]
Shape = tuple[int, ...]


def get_rows(x: Array | Weight, ids: Ints, *, arithmetic: Arithmetic) -> Array:
    """Rows by number, [ne3, ne2, row, n] and [1, ne3, ne2, wanted] -> [ne3, ne2, wanted, n] (``ggml_get_rows``)."""
    if isinstance(x, Weight) and len(x.shape) == 2:  # noqa: PLR2004 - a matrix, whose other rows are not decoded
        return x.gather(ids.reshape(-1)).reshape(*ids.shape[1:], -1)
    of = dense(x)
    wanted = ids[0]
    return np.stack(
        [
            np.stack([of[i % of.shape[0], j % of.shape[1]][wanted[i, j]] for j in range(wanted.shape[1])])
            for i in range(wanted.shape[0])
        ]
    )


def set_rows(rows: Array, ids: Ints, into: Array, *, arithmetic: Arithmetic) -> Array:
    """A tensor with rows put in by number (``ggml_set_rows``); they come as its type holds them."""
    y = into.copy()
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            y[i, j][ids[0, i % ids.shape[1], j % ids.shape[2]]] = rows[i, j]
    return y


def copied(x: Array, *_into: Array, shape: Shape, arithmetic: Arithmetic) -> Array:
    """The same numbers in another shape (``ggml_cpy``, ``ggml_cont``, ``ggml_dup``)."""
    return np.ascontiguousarray(x).reshape(shape)


def concat(a: Array, b: Array, *, axis: int, arithmetic: Arithmetic) -> Array:
    """Two tensors side by side along an axis, counted as ggml does from the last (``ggml_concat``)."""
    return np.concatenate([a, b], axis=3 - axis)


def repeat(x: Array, *_like: Array, shape: Shape, arithmetic: Arithmetic) -> Array:
    """A tensor repeated to a shape (``ggml_repeat``)."""
    return np.ascontiguousarray(tiled(x, shape))


def argsort(x: Array, *, descending: bool, arithmetic: Arithmetic) -> Ints:
    """Where the numbers of each row stand in order (``ggml_argsort``)."""
    return np.argsort(-x if descending else x, axis=-1, kind="stable").astype(np.int32)


def top_k(x: Array, *, k: int, arithmetic: Arithmetic) -> Ints:
    """Where the largest numbers of each row stand, in an order that ggml leaves open (``ggml_top_k``)."""
    return np.argsort(-x, axis=-1, kind="stable")[..., :k].astype(np.int32)


def arange(*, first: float, step: float, shape: Shape, arithmetic: Arithmetic) -> Array:
    """Numbers in steps (``ggml_arange``)."""
    numbers = np.arange(int(np.prod(shape)), dtype=np.float32)
    return arithmetic.widen(np.float32(first) + np.float32(step) * numbers).reshape(shape)


def fill(*_like: Array, value: float, shape: Shape, arithmetic: Arithmetic) -> Array:
    """One number everywhere (``ggml_fill``)."""
    return np.full(shape, value, arithmetic.dtype)
