"""The operations of attention: what enters the cache, scores, softmax, and what is attended to.

Pure functions of arrays and attributes, as those of :mod:`firstdiff.model.operations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.flash import attended_in_f16
from firstdiff.model.weights import Weight
from firstdiff.model.workers import shared_out


def append(past: Array | None, new: Array, *, values: bool = False, arithmetic: Arithmetic) -> Array:
    """What a layer's cache of keys, or `values`, holds now: [S - T, H_kv, D] and [T, H_kv, D] -> [S, H_kv, D]."""
    new = arithmetic.enter(new, values=values)
    return new if past is None else np.concatenate([arithmetic.widen(past), new])


def scores(
    q: Array,
    keys: Array,
    *,
    group: int,
    factor: float = 1.0,
    mask: Array | None = None,  # noqa: ARG001 - those who judge the scores read it
    arithmetic: Arithmetic,
) -> Array:
    """Raw attention scores, unscaled: [T, H, D] and [S, H_kv, D] -> [H, T, S]; head h reads KV head h // group.

    Parameters
    ----------
    factor
        What queries are multiplied by before they are rounded for the product, which is divided by it again.
    mask
        That of :func:`soft_max`, which says which scores count.
    """
    if factor != 1:
        scaled = scores(arithmetic.widen(q) * arithmetic.dtype(factor), keys, group=group, arithmetic=arithmetic)
        return np.asarray(np.asarray(scaled) / scaled.dtype.type(factor))
    q, held = arithmetic.query(q), arithmetic.cached(keys).transpose(1, 2, 0)  # [T, H, D], [H_kv, D, S]
    tokens, heads, dim = q.shape
    if _in_parts.get() and heads * tokens * len(keys) > MANY:

        def part(of: slice, some: slice, seen: slice) -> Array:
            several = range(*of.indices(heads))
            return np.stack([q[some, head] @ held[head // group, :, seen] for head in several])

        parts = InParts((heads, tokens, len(keys)), np.dtype(arithmetic.dtype), part)
        return cast("Array", parts)
    grouped = q.transpose(1, 0, 2).reshape(heads // group, group * tokens, dim)  # [H_kv, group * T, D]
    return by_heads(grouped, held, arithmetic.widen).reshape(heads, tokens, -1)


def by_heads(a: Array, b: Array, operand: Callable[[Array], Array]) -> Array:
    """Products of matrices, one a head: [H, T, n], each made an operand first, and [H, n, m] -> [H, T, m]."""
    y = np.empty((*a.shape[:2], b.shape[-1]), b.dtype)

    def multiply(heads: Sequence[slice]) -> None:
        for of in heads:
            np.matmul(operand(a[of]), b[of], out=y[of])

    shared_out(multiply, heads_at_once((len(a), a.shape[1], max(a.shape[2], b.shape[2]))))
    return y


def soft_max(
    kq: Array,
    sinks: Weight | None = None,
    *,
    scale: float,
    offset: int = 0,
    mask: Array | None = None,
    cap: float | None = None,
    arithmetic: Arithmetic,
) -> Array:
    """Softmax over the keys, [H, T, S] -> [H, T, S]; hidden entries are 0 (``ggml_soft_max_ext``).

    Parameters
    ----------
    kq, scale
        Raw scores, and what they are multiplied by.
    sinks
        One more score per head [H], which takes its part of the sum and of which nothing is attended to.
    offset
        A query sees the keys up to its own position plus this.
    mask
        What is added to the scaled scores instead, [T, S] or [H, T, S]: minus infinity hides.
    cap
        A soft cap of the scaled scores: ``cap * tanh(z / cap)`` (Gemma Team 2024); None for none.
    """
    sink = None if sinks is None else arithmetic.widen(sinks.values()).reshape(-1, 1, 1)
    added = None if mask is None else arithmetic.widen(mask)
    seen = None if mask is not None else visible(kq.shape[-2], kq.shape[-1], offset)

    def reach(queries: int) -> int:
        tokens, count = int(kq.shape[-2]), int(kq.shape[-1])
        return count if seen is None else max(1, min(count, count - tokens + queries + offset))

    def part(of: slice, some: slice, keys: slice) -> Array:
        last = reach(some.indices(kq.shape[-2])[1])
        z = arithmetic.widen(kq[of, some, :last]) * arithmetic.dtype(scale)
        if cap is not None:
            z[:] = arithmetic.widen(cap * np.tanh(np.asarray(z / arithmetic.dtype(cap), np.float64)))
        if added is not None:
            z += added[of, some] if len(added.shape) > 2 and len(added) > 1 else added[..., some, :]  # noqa: PLR2004 - of each head
        elif seen is not None:
            np.copyto(z, -np.inf, where=~seen[some, :last])
        top = z.max(-1, keepdims=True)
        top = top if sink is None else np.maximum(top, sink[of])
        z -= top
        np.exp(z, out=z)
        total = z.sum(-1, keepdims=True, dtype=np.float64)
        total = total if sink is None else total + np.exp(np.asarray(sink[of] - top, np.float64))
        z *= arithmetic.widen(1.0 / total)
        if last == kq.shape[-1]:
            return z[..., keys]
        p = np.zeros((*z.shape[:2], kq.shape[-1]), z.dtype)[..., keys]
        p[..., :last] = z[..., keys]
        return p

    p = InParts(kq.shape, np.dtype(arithmetic.dtype), part, reach)
    return cast("Array", p) if _parts(kq) is not None else np.asarray(p)


AT_ONCE = 1 << 20
"""Scores that an operation works on at a time, if they are of more than one head: a cache holds them."""


MANY = 1 << 25
"""Scores of one call, 128 MiB of float32, beyond which a pass that allows it computes them in parts."""

_in_parts: ContextVar[bool] = ContextVar("scores in parts", default=False)


@contextmanager
def scores_in_parts() -> Iterator[None]:
    """Have the scores of long prompts computed where they are read, while the block runs.

    What reads them then must do with the parts of an array, or with :func:`numpy.asarray` of it.
    """
    token = _in_parts.set(True)
    try:
        yield
    finally:
        _in_parts.reset(token)


@dataclass(frozen=True, slots=True, eq=False)
class InParts:
    """Scores [H, T, S] that are computed where they are read: some heads and queries at a time.

    A prompt of 2,048 tokens has 134 million of them for 32 heads, in every layer. It stands for an array: what takes
    all of it gets one (``np.asarray``).

    Parameters
    ----------
    shape, dtype
        As of an array.
    part
        Computes those of some heads, queries and keys; of keys all up to one.
    reach
        How many keys the first so many queries give any weight to; None where nobody knows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    part: Callable[[slice, slice, slice], Array]
    reach: Callable[[int], int] | None = None

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - as an array's
        heads, queries, keys = (*(key if isinstance(key, tuple) else (key,)), slice(None), slice(None))[:3]
        if not (isinstance(heads, slice) and isinstance(queries, slice)):
            return np.asarray(self)[key]
        if isinstance(keys, slice) and keys.start is keys.step is None:
            return self.part(heads, queries, keys)
        return self.part(heads, queries, slice(None))[:, :, keys]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: ANN401, FBT001 - numpy's
        x = np.empty(self.shape, self.dtype)

        def fill(heads: Sequence[slice]) -> None:
            for of in heads:
                x[of] = self.part(of, slice(None), slice(None))

        shared_out(fill, heads_at_once(self.shape))
        return x if dtype is None else np.asarray(x, dtype)


def _parts(x: object) -> InParts | None:
    """Scores, or what was made of them, that are computed where they are read; None of an array."""
    return x if isinstance(x, InParts) else None


def heads_at_once(shape: tuple[int, ...]) -> list[slice]:
    """Divide scores [H, T, S] into some of a few heads each."""
    step = max(1, AT_ONCE // max(1, math.prod(shape[1:])))
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def visible(queries: int, keys: int, offset: int = 0) -> npt.NDArray[np.bool_]:
    """Which keys a query may see, bool [T, S]: the last `queries` positions of `keys`, each up to itself."""
    own = np.arange(keys - queries, keys)[:, None]
    return np.arange(keys)[None, :] <= own + offset


def looked_at(shape: tuple[int, ...], mask: Array | None = None) -> npt.NDArray[np.bool_]:
    """Which scores [H, T, S] count, bool [T, S] or [H, T, S]: those that no mask hides, or not of the future."""
    return visible(*shape[-2:]) if mask is None else np.isfinite(mask)


def attend(p: Array, values: Array, *, group: int, arithmetic: Arithmetic) -> Array:
    """Attention output with heads merged: [H, T, S] and [S, H_kv, D] -> [T, H * D].

    ggml's flash attention never makes `p`; with values in f16 it also adds up in f16, but for tiles of many queries.
    """
    heads, tokens, keys = p.shape
    held = arithmetic.cached(values).transpose(1, 0, 2)  # [H_kv, S, D]
    parts = _parts(p)
    if parts is not None and not arithmetic.attends_in_f16(tokens):
        return _attended_in_parts(parts, held, group, arithmetic)
    grouped = np.asarray(p).reshape(heads // group, group * tokens, keys)  # [H_kv, group * T, S]
    if arithmetic.attends_in_f16(tokens):
        rounded = arithmetic.probabilities(grouped)
        out = arithmetic.widen(attended_in_f16(rounded, held, arithmetic.chunks(tokens, keys)))
    else:
        out = by_heads(grouped, held, arithmetic.probabilities)  # [H_kv, group * T, D]
    return np.ascontiguousarray(out.reshape(heads, tokens, -1).transpose(1, 0, 2)).reshape(tokens, -1)


QUERIES = 256
"""Queries of one head that are attended for at a time: those of the beginning see few keys."""


def _attended_in_parts(p: InParts, held: Array, group: int, arithmetic: Arithmetic) -> Array:
    """Attention output of probabilities that are computed where they are read."""
    heads, tokens, keys = p.shape
    y = np.empty((tokens, heads, held.shape[-1]), held.dtype)

    def fill(parts: Sequence[tuple[int, int]]) -> None:
        for start, head in parts:
            stop = min(tokens, start + QUERIES)
            last = keys if p.reach is None else p.reach(stop)
            weights = arithmetic.probabilities(p[head : head + 1, start:stop, :last])[0]
            y[start:stop, head] = weights @ held[head // group, :last]

    shared_out(fill, [(start, head) for start in range(0, tokens, QUERIES) for head in range(heads)])
    return y.reshape(tokens, -1)
