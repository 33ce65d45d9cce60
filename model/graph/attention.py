"""Attention in one operation, as ggml's CPU backend computes it (``ggml_compute_forward_flash_attn_ext``, ops.cpp)."""

from __future__ import annotations

import numpy as np

from firstdiff.model.arithmetic import SPLIT, TILE, Arithmetic, Array
from firstdiff.model.graph.products import product, repeated, rounded
from firstdiff.model.graph.rows import masked

F = np.float32
ALIKE = ("F32", "F16")
"""Types of keys and values that ggml has tiles, and chunks among threads, for."""


def tiled(queries: int, keys: str, values: str) -> bool:
    """Whether so many queries are worked on in tiles, in float32 throughout."""
    return queries >= TILE and keys == values and keys in ALIKE


def adds_in_f16(queries: int, keys: str, values: str, arithmetic: Arithmetic) -> bool:
    """Whether values are added up in f16, key after key."""
    return values == "F16" and not tiled(queries, keys, values) and arithmetic.ggml_products


def scores(
    q: Array,
    k: Array,
    mask: Array | None,
    *,
    scale: float,
    bias: float,
    cap: float,
    keys: str,
    values: str,
    arithmetic: Arithmetic,
) -> Array:
    """Scaled, capped and masked scores, [B, H, T, S]."""
    if not tiled(q.shape[2], keys, values):
        q = rounded(q, keys, arithmetic)
    s = product(repeated(k, q), q, arithmetic) * (F(scale / cap) if cap else F(scale))
    s = arithmetic.widen(cap * np.tanh(np.asarray(s, np.float64))) if cap else s
    return masked(s, mask, bias)


def flash_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    sinks: Array | None = None,
    *,
    arithmetic: Arithmetic,
    keys: str,
    values: str,
    **attributes: float,
) -> Array:
    """Attention in one operation (Dao et al. 2022; ``ggml_flash_attn_ext``), [B, H, T, D] -> [B, T, H, D].

    `keys` and `values` are their types, `attributes` those of :func:`scores`. Values of type f16 are added up in f16,
    key after key; among several threads the keys of a single query are divided, and the parts added in float32.
    """
    s = scores(q, k, mask, arithmetic=arithmetic, keys=keys, values=values, **attributes)
    v = repeated(v, q)
    sink = None if sinks is None else np.broadcast_to(sinks.reshape(1, -1, 1), s.shape[:3])
    if not adds_in_f16(q.shape[2], keys, values, arithmetic):
        return _laid_out(_attended(s, v, sink, arithmetic))
    split = q.shape[0] == q.shape[2] == 1 and keys == values and s.shape[3] >= SPLIT
    size = -(-s.shape[3] // max(1, arithmetic.flash)) if split else s.shape[3]
    sums = _nothing(s, v)
    with np.errstate(all="ignore"):
        for start in range(0, s.shape[3], size):
            part = _in_turn(s[..., start : start + size], v[:, :, start : start + size])
            if sink is not None and start == 0:
                part = _joined(part, (np.zeros_like(part[0]), np.ones_like(part[1]), sink))
            sums = _joined(sums, part)
        acc, total, _ = sums
        y = acc * np.where(total == 0, F(0), F(1) / total)[..., None]
    return _laid_out(y)


def _laid_out(y: Array) -> Array:
    return np.ascontiguousarray(y.transpose(0, 2, 1, 3))


def _attended(s: Array, v: Array, sink: Array | None, arithmetic: Arithmetic) -> Array:
    """Softmax and its product with the values; 0 for a query that sees nothing."""
    wide = np.asarray(s, np.float64)
    top = wide.max(-1) if sink is None else np.maximum(wide.max(-1), sink)
    with np.errstate(all="ignore"):
        weights = np.exp(wide - np.where(np.isfinite(top), top, 0)[..., None])
        total = weights.sum(-1) + (0 if sink is None else np.exp(sink - top))
        y = np.matmul(weights, np.asarray(v, np.float64)) / np.where(total == 0, 1, total)[..., None]
    return arithmetic.widen(y)


Sums = tuple[Array, Array, Array]
"""Of each query: its values added up, their weights, and the largest score, which both are relative to."""


def _nothing(s: Array, v: Array) -> Sums:
    """No key seen yet."""
    acc = np.zeros((*s.shape[:3], v.shape[-1]), F)
    return acc, np.zeros(s.shape[:3], F), np.full(s.shape[:3], -np.inf, F)


def _joined(one: Sums, other: Sums) -> Sums:
    """Two parts of the keys together, in float32 (``ggml_flash_attn_ext_reduce_partials``)."""
    (a, m, s), (b, n, t) = one, other
    top = np.maximum(s, t)
    old, new = (np.where(np.isneginf(x), F(0), np.exp(x - top)).astype(F) for x in (s, t))
    return a * old[..., None] + b * new[..., None], m * old + n * new, top


def _in_turn(s: Array, v: Array) -> Sums:
    """Keys one after another, what was added up scaled down where a larger score comes; every step rounds to f16."""
    acc, total, top = _nothing(s, v)
    for key in range(s.shape[3]):
        x = s[..., key]
        seen = x != -np.inf
        if not seen.any():
            continue
        larger = seen & (x > top)
        new = np.where(larger, x, top)
        kept = np.where(larger, np.exp((top - new).astype(np.float64)).astype(F), F(1))
        weight = np.where(larger, F(1), np.exp((x - new).astype(np.float64)).astype(F))
        scaled = np.where(larger[..., None], _half(acc * kept[..., None]), acc)
        fused = scaled.astype(np.float64) + v[:, :, None, key].astype(np.float64) * weight[..., None]
        acc = np.where(seen[..., None], _half(fused.astype(F)), acc)
        total, top = np.where(seen, total * kept + weight, total), np.where(seen, new, top)
    return acc, total, top


def _half(x: Array) -> Array:
    return x.astype(np.float16).astype(F)


def attention_sizes(q: Array, k: Array, v: Array, *rest: Array, arithmetic: Arithmetic, **attributes: float) -> Array:
    """The terms of what is attended to: values times their weights, in magnitude."""
    s = scores(q, k, rest[0] if rest else None, arithmetic=arithmetic, **attributes)  # type: ignore[arg-type]
    sink = None if len(rest) < 2 else np.broadcast_to(rest[1].reshape(1, -1, 1), s.shape[:3])  # noqa: PLR2004 - sinks
    return _laid_out(_attended(s, np.abs(repeated(v, q)), sink, arithmetic))
