"""Products: of matrices, of experts' matrices, and flash attention (ggml/src/ggml-cpu/ggml-cpu.c, ops.cpp)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from firstdiff.model import quants
from firstdiff.model.arithmetic import TILE, Arithmetic, Array
from firstdiff.model.graph.rows import masked
from firstdiff.model.operations import linear
from firstdiff.model.quants import BY_NAME
from firstdiff.model.rounding import turn
from firstdiff.model.weights import Weight

F = np.float32
Matrix = Weight | Array
"""A weight of the file, or what was computed: [ne3, ne2, out, in]."""


def _rounded(x: Array, kind: str, arithmetic: Arithmetic) -> Array:
    """Activations as ggml's CPU backend rounds them for a matrix of a type; see `quants.round_activations`."""
    if not arithmetic.ggml_products or kind == "F32":
        return arithmetic.operand(x)
    flat = np.ascontiguousarray(x, F).reshape(-1, x.shape[-1])
    return arithmetic.widen(quants.round_activations(flat, BY_NAME[kind])[0].reshape(x.shape))


def _product(w: Array, x: Array, arithmetic: Arithmetic) -> Array:
    """[.., out, in] and [.., row, in] -> [.., row, out], summed in float64."""
    return arithmetic.widen(np.matmul(np.asarray(x, np.float64), np.swapaxes(np.asarray(w, np.float64), -1, -2)))


def repeated(w: Array, x: Array) -> Array:
    """A matrix for each matrix of `x`: several of these share one, in turn (grouped queries)."""
    for axis in (1, 0):
        if w.shape[axis] != x.shape[axis]:
            w = np.repeat(w, x.shape[axis] // w.shape[axis], axis=axis)
    return w


def mul_mat(w: Matrix, x: Array, *, kind: str, turned: bool, arithmetic: Arithmetic) -> Array:
    """[ne3, ne2, out, in] and [ne3, ne2, row, in] -> [ne3, ne2, row, out] (``ggml_mul_mat``).

    Parameters
    ----------
    kind
        The type of the matrix, which decides how the rows are rounded.
    turned
        Whether the matrix is Hadamard's, and the product is made without it (``ggml_compute_forward_fwht``).
    """
    if turned:
        return turn(np.ascontiguousarray(x, F), x.shape[-1])
    if isinstance(w, Weight) and len(w.shape) == 2:  # noqa: PLR2004 - a matrix
        y = linear(np.ascontiguousarray(x).reshape(-1, x.shape[-1]), w, arithmetic=arithmetic)
        return y.reshape(*x.shape[:3], -1)
    dense = w.values().reshape((1,) * (4 - len(w.shape)) + w.shape) if isinstance(w, Weight) else w
    return _product(repeated(dense, x), _rounded(x, kind, arithmetic), arithmetic)


def expert(w: Weight, number: int) -> Weight:
    """One expert's matrix of a weight [expert, out, in]."""
    size = w.raw.size // w.shape[0]
    return replace(w, shape=w.shape[1:], raw=w.raw[number * size : (number + 1) * size])


def mul_mat_id(w: Matrix, x: Array, ids: Array, *, kind: str, arithmetic: Arithmetic) -> Array:
    """Each token's rows times the matrices of the experts that it chose (``ggml_mul_mat_id``).

    [1, expert, out, in], [1, token, row, in] and [1, 1, token, chosen] -> [1, token, chosen, out]; of one row each
    expert takes it, else its own.
    """
    chosen = ids[0, 0]
    out = w.shape[-2]
    y = np.empty((1, *chosen.shape, out), arithmetic.dtype)
    rows = np.broadcast_to(x[0], (chosen.shape[0], chosen.shape[1], x.shape[-1]))  # [token, chosen, in]
    for number in np.unique(chosen):
        at = chosen == number
        if isinstance(w, Weight):
            y[0][at] = linear(np.ascontiguousarray(rows[at]), expert(w, int(number)), arithmetic=arithmetic)
        else:
            y[0][at] = _product(w[0, int(number)], _rounded(rows[at], kind, arithmetic), arithmetic)
    return y


def add_id(a: Array, b: Array, ids: Array, *, arithmetic: Arithmetic) -> Array:
    """A row of the chosen experts' added to each (``ggml_add_id``)."""
    return np.asarray(arithmetic.widen(a) + arithmetic.widen(b)[0, 0][ids[0, 0]][None])


def scores(q: Array, k: Array, *, scale: float) -> Array:
    """Scaled scores of queries [B, H, T, D] and keys [B, H_kv, S, D], without a mask."""
    return np.asarray(np.matmul(q, np.swapaxes(repeated(k, q), -1, -2)) * F(scale))


def flash_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    sinks: Array | None = None,
    *,
    scale: float,
    bias: float,
    cap: float,
    keys: str,
    values: str,
    arithmetic: Arithmetic,
) -> Array:
    """Attention in one operation (Dao et al. 2022; ``ggml_flash_attn_ext``), [B, H, T, D] -> [B, T, H, D].

    Keys are taken in turn, weighted against the largest score so far; values of type f16 are added up in f16, but for
    tiles of many queries. `keys` and `values` are their types.
    """
    tiles = q.shape[2] >= TILE and keys == values and keys in ("F32", "F16")
    factor = F(scale / cap) if cap else F(scale)
    if not tiles:
        q = _rounded(q, keys, arithmetic)
    k, v = repeated(k, q), repeated(v, q)
    s = _product(k, q, arithmetic) * factor  # [B, H, T, S]
    s = arithmetic.widen(cap * np.tanh(np.asarray(s, np.float64))) if cap else s
    s = masked(s, mask, bias)
    half = values == "F16" and not tiles and arithmetic.ggml_products
    acc = np.zeros((*s.shape[:3], v.shape[-1]), F)
    total, top = np.zeros(s.shape[:3], F), np.full(s.shape[:3], -np.inf, F)
    with np.errstate(all="ignore"):
        for key in range(s.shape[-1]):
            x = s[..., key]
            on = x != -np.inf
            if not on.any():
                continue
            up = on & (x > top)
            new = np.where(up, x, top)
            kept = np.where(up, np.exp((top - new).astype(np.float64)).astype(F), F(1))
            weight = np.where(up, F(1), np.exp((x - new).astype(np.float64)).astype(F))
            value = v[:, :, None, key]
            if half:
                scaled = np.where(up[..., None], _half(acc * kept[..., None]), acc)
                added = _half((scaled.astype(np.float64) + value.astype(np.float64) * weight[..., None]).astype(F))
            else:
                added = acc * kept[..., None] + value * weight[..., None]
            acc = np.where(on[..., None], added, acc)
            total = np.where(on, total * kept + weight, total)
            top = np.where(on, new, top)
        if sinks is not None:
            sink = np.broadcast_to(sinks.reshape(1, -1, 1), top.shape)
            new = np.maximum(sink, top)
            kept, weight = np.exp(top - new), np.exp(sink - new)
            acc, total = acc * kept[..., None], total * kept + weight
        y = acc * np.where(total == 0, F(0), F(1) / total)[..., None]
    return np.ascontiguousarray(y.transpose(0, 2, 1, 3))


def _half(x: Array) -> Array:
    return x.astype(np.float16).astype(F)
