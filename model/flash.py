"""Sums that are kept in f16: of ggml's flash attention on the CPU, and of products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


def attended_in_f16(p: Array, values: Array, chunks: int = 1) -> Array:
    """Values weighted by their probabilities, [H, T, S] and [H, S, D] -> [H, T, D], added up in f16.

    As ``ggml_compute_forward_flash_attn_ext_f16_one_chunk``: keys are taken in turn, weighted by their score against
    the largest so far, and what was summed is scaled down whenever a larger one comes. Every step rounds to f16. Of
    several threads each takes a chunk of a long cache, and the sums of the chunks are added in float32.
    """
    p, values = np.asarray(p, np.float64), np.asarray(values, np.float64)
    size = -(-padded(p.shape[-1]) // chunks)
    largest = p.max(-1, keepdims=True)  # [H, T, 1]
    out = np.zeros((*p.shape[:2], values.shape[-1]), np.float32)
    total = np.zeros((*p.shape[:2], 1), np.float32)
    for start in range(0, p.shape[-1], size):
        part = p[..., start : start + size]
        summed, weights = _in_turn(part, values[:, start : start + size])
        share = (part.max(-1, keepdims=True) / largest).astype(np.float32)
        out += summed * share
        total += weights * share
    return out * (np.float32(1) / total)


def _in_turn(p: Array, values: Array) -> tuple[Array, Array]:
    """Sums [H, T, D] of values by their weights, and of the weights alone [H, T, 1], against the largest of them."""
    top = np.maximum.accumulate(p, axis=-1)  # [H, T, S]
    before = np.concatenate([np.zeros_like(top[..., :1]), top[..., :-1]], -1)
    with np.errstate(all="ignore"):  # a probability can be 0
        weight, kept = (np.nan_to_num(x / top).astype(np.float32)[..., None] for x in (p, before))
    total = np.zeros((*p.shape[:2], 1), np.float32)
    out = np.zeros((*p.shape[:2], values.shape[-1]))  # numbers of f16
    for s in range(p.shape[-1]):
        seen = p[..., s, None] > 0  # the others are hidden, or add nothing
        w, scale = weight[:, :, s], kept[:, :, s]
        scaled = np.where(scale < 1, _f16(out * scale), out)
        out = np.where(seen, _f16(scaled + values[:, None, s] * w), out)
        total = np.where(seen, total * scale + w, total)
    return out.astype(np.float32), total


PAD = 256
"""llama.cpp reads its cache in multiples of this many positions (``llama_kv_cache::get_n_kv``)."""


def padded(keys: int) -> int:
    """How many positions llama.cpp reads of a cache that holds so many."""
    return -(-keys // PAD) * PAD


LANES = 8
"""Terms that are added up before a sum in f16 takes them in: what one instruction of a tensor core multiplies."""


def sums_in_f16(x: Array, rows: Array) -> Array:
    """Product [T, in] and [out, in] -> [T, out] whose sum is kept in f16, rounded after every `LANES` terms."""
    out = np.zeros((len(x), len(rows)), np.float16)
    with np.errstate(over="ignore"):
        for start in range(0, x.shape[-1], LANES):
            part = x[:, start : start + LANES] @ rows[:, start : start + LANES].T
            out = (out.astype(np.float32) + part).astype(np.float16)
    return out.astype(np.float32)


def _f16(x: Array) -> Array:
    """Rounded to float32, as a fused multiply-add is, and then to f16."""
    return x.astype(np.float32).astype(np.float16).astype(np.float64)
