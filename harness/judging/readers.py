"""Readers: a recorded array in, the same numbers as the reference lays them out; None where the shape does not fit."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import numpy.typing as npt

from firstdiff.model.arithmetic import Array

Shape = tuple[int, ...]
Read = Callable[[Array, Shape], Array | None]
Indices = npt.NDArray[np.int64]


def plain(x: Array, shape: Shape) -> Array | None:
    """The same numbers in the same order: a batch of one dropped, heads merged or apart, one row as a vector."""
    merged = (shape[0], prod(shape[1:]))
    fitting = (shape, merged, shape[1:], merged[1:]) if shape[0] == 1 else (shape, merged)
    recorded = x.shape
    while recorded not in fitting and recorded[:1] == (1,):
        recorded = recorded[1:]
    return x.reshape(shape) if recorded in fitting else None


def moved(*axes: int) -> Read:
    """Axes in another order: recorded axis `axes[i]` is the reference's axis i."""

    def read(x: Array, shape: Shape) -> Array | None:
        while x.ndim > len(axes) and x.shape[0] == 1:
            x = x[0]
        if x.ndim != len(axes) or len(shape) < len(axes):
            return None
        return plain(x.transpose(axes), shape)

    return read


def merged_last(x: Array, shape: Shape) -> Array | None:
    """[feature, token], the order in which ggml writes dimensions."""
    while x.ndim > 2 and x.shape[0] == 1:  # noqa: PLR2004 - a matrix
        x = x[0]
    return plain(x.T, shape) if x.ndim == 2 else None  # noqa: PLR2004


def half_split(inner: Read) -> Read:
    """Head dimensions (i, i + D / 2) where the reference has (2i, 2i + 1): before GGUF's conversion of a llama."""

    def read(x: Array, shape: Shape) -> Array | None:
        y = _with_pairs(inner(x, shape))
        return None if y is None else np.stack(np.split(y, 2, axis=-1), axis=-1).reshape(y.shape)

    return read


def side_by_side(inner: Read) -> Read:
    """Head dimensions (2i, 2i + 1) where the reference has (i, i + D / 2)."""

    def read(x: Array, shape: Shape) -> Array | None:
        y = _with_pairs(inner(x, shape))
        return None if y is None else np.concatenate([y[..., 0::2], y[..., 1::2]], axis=-1)

    return read


def _with_pairs(y: Array | None) -> Array | None:
    """Heads [token, head, head_dim] of an even number of dimensions, None for anything else."""
    return None if y is None or y.ndim != 3 or y.shape[-1] % 2 else y  # noqa: PLR2004


def repeated(inner: Read, heads: int) -> Read:
    """KV heads repeated for each query head that reads them."""

    def read(x: Array, shape: Shape) -> Array | None:
        group = heads // shape[1]
        y = inner(x, (shape[0], heads, *shape[2:])) if group > 1 else None
        return None if y is None else y[:, ::group]

    return read


def padded(axes: tuple[int, ...]) -> Read:
    """Scores of more keys than exist; recorded axis `axes[i]` is the reference's axis i."""

    def read(x: Array, shape: Shape) -> Array | None:
        while x.ndim > len(shape) and x.shape[0] == 1:
            x = x[0]
        if x.ndim != len(axes):
            return None
        y = x.transpose(axes)
        fits = y.shape[:-1] == shape[:-1] and y.shape[-1] > shape[-1]
        return y[..., : shape[-1]] if fits else None

    return read


def wider(x: Array, shape: Shape) -> Array | None:
    """More columns than there are: the last ones are padding."""
    if x.shape[-1] <= shape[-1]:
        return None
    rows = plain(x, (shape[0], x.shape[-1]))
    return None if rows is None else np.ascontiguousarray(rows[:, : shape[-1]])


def columns_of(start: int, stop: int) -> Read:
    """Some columns of a fused product."""

    def read(x: Array, shape: Shape) -> Array | None:
        rows = plain(x, (shape[0], x.shape[-1]))
        return None if rows is None or stop > x.shape[-1] else plain(rows[:, start:stop], shape)

    return read


def turned(inner: Read) -> Read:
    """A matrix [feature, token], read as [token, feature]."""

    def read(x: Array, shape: Shape) -> Array | None:
        while x.ndim > 2 and x.shape[0] == 1:  # noqa: PLR2004 - a matrix
            x = x[0]
        return inner(x.T, shape) if x.ndim == 2 else None  # noqa: PLR2004

    return read


wider_turned = turned(wider)
"""As :func:`wider`, of a matrix [feature, token]."""


def per_group(part: slice, width: int) -> Read:
    """Interleaved per KV head: [q of its group, k, v] for one head after another."""

    def read(x: Array, shape: Shape) -> Array | None:
        rows = plain(x, (shape[0], x.shape[-1]))
        if rows is None or rows.shape[-1] % width:
            return None
        return plain(np.ascontiguousarray(rows.reshape(shape[0], -1, width)[:, :, part]).reshape(shape[0], -1), shape)

    return read


def order(pairing: str, head_dim: int) -> Indices:
    """Which of the reference's dimensions each of the candidate's is, where the reference has this pairing."""
    dims = np.arange(head_dim)
    if pairing == "interleaved":
        return np.concatenate([dims[0::2], dims[1::2]])
    return np.stack(np.split(dims, 2), -1).reshape(-1)


def reordered(pairing: str, x: Array) -> Array:
    """Heads [..., head_dim] of a reference of this pairing, in the candidate's order."""
    return x[..., order(pairing, x.shape[-1])]


def restored(pairing: str, x: Array) -> Array:
    """The inverse of :func:`reordered`."""
    return x[..., np.argsort(order(pairing, x.shape[-1]))]


def by_head(groups: int, sizes: tuple[int, int, int], head_dim: int) -> Read:
    """A fused product with so many heads of Q, of K and of V in each group, read as all of Q, all of K and all of V."""

    def read(x: Array, shape: Shape) -> Array | None:
        rows = plain(x, shape)
        if rows is None or shape[-1] != groups * sum(sizes) * head_dim:
            return None
        heads = rows.reshape(shape[0], groups, sum(sizes), head_dim)
        parts = np.split(heads, np.cumsum(sizes)[:-1], axis=2)
        return np.concatenate([part.reshape(shape[0], -1) for part in parts], -1)

    return read
