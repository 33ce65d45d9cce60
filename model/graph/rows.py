"""Operations on rows: norms, softmax, sums (ggml/src/ggml-cpu/ops.cpp)."""

from __future__ import annotations

import math

import numpy as np

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.errors import ModelError

F = np.float32


def _mean(x: Array, arithmetic: Arithmetic) -> Array:
    return arithmetic.widen(np.asarray(x, np.float64).sum(-1, keepdims=True) / x.shape[-1])


def rms_norm(x: Array, *, eps: float, arithmetic: Arithmetic) -> Array:
    """Root mean square norm without a weight (Zhang & Sennrich 2019; ``ggml_rms_norm``): squares summed in float64."""
    x = arithmetic.widen(x)
    return np.asarray(x * (arithmetic.dtype(1) / np.sqrt(_mean(x * x, arithmetic) + arithmetic.dtype(eps))))


def l2_norm(x: Array, *, eps: float, arithmetic: Arithmetic) -> Array:
    """Rows of length 1 (``ggml_l2_norm``)."""
    x = arithmetic.widen(x)
    squares = arithmetic.widen(np.asarray(x * x, np.float64).sum(-1, keepdims=True))
    return np.asarray(x * (arithmetic.dtype(1) / np.maximum(np.sqrt(squares), arithmetic.dtype(eps))))


def slopes(heads: int, most: float) -> Array:
    """What ALiBi multiplies each head's distances by (Press et al. 2021), float32 [head]; ones for no bias."""
    if most <= 0:
        return np.ones(heads, F)
    power = 1 << (heads.bit_length() - 1)
    first, second = F(2.0 ** (-most / power)), F(2.0 ** (-(most / 2) / power))
    return np.array(
        [float(first) ** (h + 1) if h < power else float(second) ** (2 * (h - power) + 1) for h in range(heads)], F
    )


def masked(x: Array, mask: Array | None, bias: float) -> Array:
    """Scores [sequence, head, query, key] with a mask added, which may have more rows than there are queries."""
    if mask is None:
        return x
    of = mask[:, :, : x.shape[2]]
    of = of[np.arange(x.shape[0]) % of.shape[0]][:, np.arange(x.shape[1]) % of.shape[1]]
    with np.errstate(invalid="ignore"):
        return np.asarray(x + slopes(x.shape[1], bias)[None, :, None, None] * of if bias > 0 else x + of, x.dtype)


def soft_max(
    x: Array,
    mask: Array | None = None,
    sinks: Array | None = None,
    *,
    scale: float,
    bias: float,
    arithmetic: Arithmetic,
) -> Array:
    """Softmax of scaled scores and a mask (``ggml_soft_max_ext``).

    With sinks, each head has one more score, which takes its part of the sum and of which nothing is attended to.
    """
    z = masked(arithmetic.widen(x) * arithmetic.dtype(scale), None if mask is None else arithmetic.widen(mask), bias)
    top = z.max(-1, keepdims=True)
    sink = None if sinks is None else arithmetic.widen(sinks).reshape(1, -1, 1, 1)
    top = top if sink is None else np.maximum(top, sink)
    with np.errstate(all="ignore"):
        e = arithmetic.widen(np.exp(np.asarray(z - top, np.float64)))
        total = e.sum(-1, keepdims=True, dtype=np.float64)
        if sink is not None:
            total = total + np.exp(np.asarray(sink - top, np.float64))
        return e * arithmetic.widen(1.0 / total)


def sum_rows(x: Array, *, arithmetic: Arithmetic) -> Array:
    """The sum of each row (``ggml_sum_rows``)."""
    return arithmetic.widen(np.asarray(x, np.float64).sum(-1, keepdims=True))


def mean(x: Array, *, arithmetic: Arithmetic) -> Array:
    """The mean of each row (``ggml_mean``)."""
    return _mean(x, arithmetic)


# Rotation


def _bounds(dims: int, context: int, base: float, fast: float, slow: float) -> tuple[np.float32, np.float32]:
    """Between which pairs YaRN goes over from one frequency to the other (``ggml_rope_yarn_corr_dims``)."""

    def pair(turns: float) -> np.float32:
        return F(dims * F(math.log(F(context) / F(F(turns) * 2 * F(math.pi)))) / (2 * F(math.log(F(base)))))

    return max(F(0), F(math.floor(pair(fast)))), min(F(dims - 1), F(math.ceil(pair(slow))))


def _sections(positions: Array, step: np.float32, half: int, sections: tuple[int, ...], mode: int) -> Array:
    """Angles where a token has four positions: a pair's section says which it takes (``ggml_mrope_cache_init``)."""
    at = positions.reshape(4, -1).astype(F)
    total = sum(sections)
    ends = np.cumsum(sections)
    sector = np.arange(half) % total
    which = np.searchsorted(ends, sector, side="right").clip(max=3)
    powers = np.full((4, at.shape[1], half), step, F)
    powers[:, :, 0] = at
    angles = np.multiply.accumulate(powers, axis=2)
    if mode == IMROPE:
        third = sector % 3
        of = np.array((0, 1, 2))[third]
        which = np.where(sector < 3 * np.array(sections)[of], of, 3)
    return np.stack([angles[which[j], :, j] for j in range(half)], 1)


NORMAL, NEOX, MROPE, IMROPE = 0, 2, 8, 40
"""``GGML_ROPE_TYPE_NORMAL`` (pairs of neighbours), ``_NEOX`` (pairs half of the numbers apart), and those of several
positions a token."""


def rope(
    x: Array,
    positions: Array,
    factors: Array | None = None,
    *,
    dims: int,
    mode: int,
    context: int,
    base: float,
    freq_scale: float,
    ext: float,
    magnitude: float,
    fast: float,
    slow: float,
    sections: tuple[int, ...],
    start: int,
    back: bool,
    arithmetic: Arithmetic,
) -> Array:
    """Rotary position embedding in all of ggml's forms (Su et al. 2021, Peng et al. 2023; ``ggml_rope_ext``).

    Parameters
    ----------
    dims, start
        How many numbers of a head are rotated, and from which on.
    mode
        Which are pairs: neighbours (0), or those half of `dims` apart; with bit 3 there are four positions a token.
    factors
        What each pair's angle is divided by.
    freq_scale, ext, context, fast, slow
        YaRN: the scale of positions, how much of it, and between which pairs.
    magnitude
        What cos and sin are multiplied by.
    back
        Whether it turns the other way (``ggml_rope_back``).
    """
    if mode not in (NORMAL, NEOX, MROPE, IMROPE):
        raise ModelError(f"firstdiff does not compute llama.cpp's rotation of mode {mode} yet")
    x = arithmetic.widen(x)
    half = x.shape[-1] // 2
    step = F(np.float64(F(base)) ** np.float64(F(-2.0) / F(dims)))
    if mode & MROPE:
        theta = _sections(positions.reshape(-1), step, half, sections, mode)
    else:
        theta = np.full((positions.size, half), step, F)
        theta[:, 0] = positions.reshape(-1)
        theta = np.multiply.accumulate(theta, axis=1)
    if factors is not None:
        by = np.ones(half, F)
        n = min(half, factors.size)
        by[:n] = factors.reshape(-1)[:n]
        theta = theta / by
    angle, size = (F(freq_scale) * theta).astype(F), F(magnitude)
    if ext:
        low, high = _bounds(dims, context, base, fast, slow)
        ramp = (np.arange(half, dtype=F) - low) / max(F(0.001), high - low)
        mix = (F(1) - np.clip(ramp, F(0), F(1))) * F(ext)
        angle = (angle * (F(1) - mix) + theta * mix).astype(F)
        size = F(size * F(F(1) + F(0.1) * F(math.log(F(1) / F(freq_scale)))))
    n = dims // 2
    cos, sin = (arithmetic.widen(of(np.asarray(angle[:, :n], np.float64))) * size for of in (np.cos, np.sin))
    cos, sin = cos[None, :, None], (-sin if back else sin)[None, :, None]  # [1, token, 1, pair]
    first = start + (np.arange(0, dims, 2) if mode == NORMAL else np.arange(n))
    second = first + (1 if mode == NORMAL else n)
    y = x.copy()
    a, b = x[..., first], x[..., second]
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    return y
