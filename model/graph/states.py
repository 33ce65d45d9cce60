"""Operations that carry a state from token to token (ggml/src/ggml-cpu/ops.cpp).

Their results hold the outputs, then the states; with `sizes`, how large the terms of the outputs are. What is added to
a state is rounded to float32 at each token; the sums of a token are made in float64.
"""

from __future__ import annotations

import numpy as np

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.graph.elementwise import softplus

F = np.float32
Shape = tuple[int, ...]


def _joined(outputs: Array, states: Array, shape: Shape) -> Array:
    return np.concatenate([outputs.reshape(-1), states.reshape(-1)]).reshape(shape)


def _sum(terms: Array, *, axis: int, sizes: bool) -> Array:
    """A sum in float64; or how large its terms are, as the root of the sum of their squares."""
    return np.asarray(np.sqrt(np.square(terms).sum(axis)) if sizes else terms.sum(axis))


def _exp(x: Array) -> Array:
    return np.exp(np.asarray(x, np.float64)).astype(F)


def ssm_conv(x: Array, kernel: Array, *, tokens: int, arithmetic: Arithmetic) -> Array:
    """A convolution of each channel with its past, [1, s, d, K - 1 + T] -> [1, s, T, d] (``ggml_ssm_conv``)."""
    width = kernel.shape[-1]
    windows = np.stack([x[0, :, :, t : t + width] for t in range(tokens)], 1)  # [s, T, d, K]
    return arithmetic.widen((np.asarray(windows, np.float64) * kernel[0, 0]).sum(-1))[None]


def ssm_conv_sizes(x: Array, kernel: Array, *, tokens: int, arithmetic: Arithmetic) -> Array:
    """How large its terms are."""
    return np.sqrt(ssm_conv(np.square(x), np.square(kernel), tokens=tokens, arithmetic=arithmetic))


def ssm_scan(
    state: Array,
    x: Array,
    dt: Array,
    a: Array,
    b: Array,
    c: Array,
    ids: Array,
    *,
    kept: int,
    shape: Shape,
    arithmetic: Arithmetic,
    sizes: bool = False,
) -> Array:
    """Selective state space (Gu & Dao 2023; ``ggml_ssm_scan``): x [s, T, H, D], states [s, H, D, N].

    The states after the last `kept` tokens are kept, the newest first.
    """
    sequences, tokens, heads, dim = x.shape
    dt, decay, repeats = dt.reshape(sequences, tokens, heads), a[0, 0], heads // b.shape[2]
    y = np.zeros(x.shape, F)
    states = np.zeros((kept, sequences, heads, dim, state.shape[3]), F)
    for s in range(sequences):
        now = state[int(ids.reshape(-1)[s])].astype(F)
        for t in range(tokens):
            step = softplus(dt[s, t], arithmetic=arithmetic).astype(F)
            left = _exp(step[:, None] * decay)[:, None, :]
            enters = np.repeat(b[s, t], repeats, 0)[:, None, :] * (x[s, t] * step[:, None])[..., None]
            now = (now * left + enters).astype(F)
            y[s, t] = _sum(now.astype(np.float64) * np.repeat(c[s, t], repeats, 0)[:, None, :], axis=-1, sizes=sizes)
            if tokens - 1 - t < kept:
                states[tokens - 1 - t, s] = now
    return y if sizes else _joined(y, states, shape)


def gated_delta_net(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    state: Array,
    *,
    kept: int,
    shape: Shape,
    arithmetic: Arithmetic,
    sizes: bool = False,
) -> Array:
    """Gated delta rule (Yang et al. 2024; ``ggml_gated_delta_net``): v [s, T, H, D], states [s, H, D, D] transposed."""
    sequences, tokens, heads, dim = v.shape
    y = np.zeros(v.shape, F)
    states = np.zeros((kept, sequences, heads, dim, dim), F)
    for s in range(sequences):
        for h in range(heads):
            now = state[s, h].astype(F)
            own = {id(x): (s // (sequences // x.shape[0]), h % x.shape[2]) for x in (q, k)}
            for t in range(tokens):
                (qs, qh), (ks, kh) = own[id(q)], own[id(k)]
                key, query = k[ks, t, kh], q[qs, t, qh]
                left = _exp(g[s, t, h])
                now = now * (left[None, :] if g.shape[-1] == dim else left[0])
                held = (now.astype(np.float64) @ key.astype(np.float64)).astype(F)
                now = (now + ((v[s, t, h] - held) * beta[s, t, h, 0])[:, None] * key[None, :]).astype(F)
                out = _sum(now.astype(np.float64) * query.astype(np.float64), axis=-1, sizes=sizes)
                y[s, t, h] = out.astype(F) / np.sqrt(F(dim))
                if tokens - 1 - t < kept:
                    states[tokens - 1 - t, s, h] = now
    return y if sizes else _joined(y, states, shape)


def wkv6(
    k: Array,
    v: Array,
    r: Array,
    bonus: Array,
    decay: Array,
    state: Array,
    *,
    shape: Shape,
    arithmetic: Arithmetic,
    sizes: bool = False,
) -> Array:
    """RWKV 6 (Peng et al. 2024; ``ggml_rwkv_wkv6``): k, v, r, decay [1, T, H, D], states of each sequence [H, D, D]."""
    tokens, heads, dim = k.shape[1:]
    k, v, r, decay = (np.ascontiguousarray(x).reshape(tokens, heads, dim) for x in (k, v, r, decay))
    states = state.reshape(-1, heads, dim, dim).astype(F)
    y, each, first = np.zeros((tokens, heads, dim), F), tokens // len(states), bonus.reshape(heads, dim)
    for t in range(tokens):
        now = states[t // each]
        new = k[t][:, :, None] * v[t][:, None, :]
        y[t] = _sum((new * first[:, :, None] + now).astype(np.float64) * r[t][:, :, None], axis=1, sizes=sizes)
        states[t // each] = now * decay[t][:, :, None] + new
    return y if sizes else _joined(y, states, shape)


def wkv7(
    r: Array,
    w: Array,
    k: Array,
    v: Array,
    a: Array,
    b: Array,
    state: Array,
    *,
    shape: Shape,
    arithmetic: Arithmetic,
    sizes: bool = False,
) -> Array:
    """RWKV 7 (Peng et al. 2025; ``ggml_rwkv_wkv7``): all [1, T, H, D], states of each sequence [H, D, D]."""
    tokens, heads, dim = k.shape[1:]
    r, w, k, v, a, b = (np.ascontiguousarray(x).reshape(tokens, heads, dim) for x in (r, w, k, v, a, b))
    states = state.reshape(-1, heads, dim, dim).astype(F)
    y, each = np.zeros((tokens, heads, dim), F), tokens // len(states)
    for t in range(tokens):
        now = states[t // each]
        removed = (now.astype(np.float64) * a[t][:, None, :]).sum(-1).astype(F)
        now = now * w[t][:, None, :] + v[t][:, :, None] * k[t][:, None, :] + removed[:, :, None] * b[t][:, None, :]
        states[t // each] = now
        y[t] = _sum(now.astype(np.float64) * r[t][:, None, :], axis=-1, sizes=sizes)
    return y if sizes else _joined(y, states, shape)


def gated_linear_attention(
    k: Array,
    v: Array,
    q: Array,
    g: Array,
    state: Array,
    *,
    scale: float,
    shape: Shape,
    arithmetic: Arithmetic,
    sizes: bool = False,
) -> Array:
    """Gated linear attention (Yang et al. 2023; ``ggml_gated_linear_attn``): all [1, T, H, D], states [H, D, D]."""
    tokens, heads, dim = k.shape[1:]
    k, v, q, g = (np.ascontiguousarray(x).reshape(tokens, heads, dim) for x in (k, v, q, g))
    states = state.reshape(-1, heads, dim, dim).astype(F)
    y, each = np.zeros((tokens, heads, dim), F), tokens // len(states)
    for t in range(tokens):
        now = states[t // each] * g[t][:, :, None] + k[t][:, :, None] * v[t][:, None, :]
        states[t // each] = now
        y[t] = _sum(now.astype(np.float64) * (q[t] * F(scale))[:, :, None], axis=1, sizes=sizes)
    return y if sizes else _joined(y, states, shape)


# DeepSeek 3.2 and 4


def lightning_indexer(q: Array, k: Array, weights: Array, mask: Array, *, arithmetic: Arithmetic) -> Array:
    """Scores by which keys are selected, [s, T, H, D] and [s, S, 1, D] -> [s, 1, T, S] (``ggml_lightning_indexer``)."""
    scores = np.einsum("sthd,skd->sthk", q.astype(np.float64), k[:, :, 0].astype(np.float64)).astype(F)
    y = (np.maximum(scores, 0).astype(np.float64) * weights[:, 0][..., None]).sum(2).astype(F)
    return np.asarray(y + mask[:, 0][np.arange(len(y)) % len(mask)])[:, None]


def lightning_indexer_sizes(q: Array, k: Array, weights: Array, _mask: Array, *, arithmetic: Arithmetic) -> Array:
    """How large its terms are: what a score is the sum of, times the weight of its head."""
    squares = np.einsum("sthd,skd->sthk", np.square(q, dtype=np.float64), np.square(k[:, :, 0], dtype=np.float64))
    return np.asarray((np.sqrt(squares) * np.abs(weights[:, 0])[..., None]).sum(2))[:, None]


def hyper_connection_mix(
    mixes: Array, scale: Array, base: Array, *, eps: float, rounds: int, arithmetic: Arithmetic
) -> Array:
    """How streams are mixed: rows and columns made to sum to 1 in turn (``GGML_OP_DSV4_HC_COMB``)."""
    x = mixes[0, 0]
    y = (x[:, 8:] * scale.reshape(-1)[2] + base.reshape(-1)[8:]).reshape(len(x), 4, 4)  # [token, from, to]
    y = np.exp(y - y.max(-1, keepdims=True))
    y = (y / y.sum(-1, keepdims=True) + F(eps)).astype(F)
    y = (y / (y.sum(1, keepdims=True) + F(eps))).astype(F)
    for _ in range(1, rounds):
        y = (y / (y.sum(2, keepdims=True) + F(eps))).astype(F)
        y = (y / (y.sum(1, keepdims=True) + F(eps))).astype(F)
    return np.asarray(y)[None]


def hyper_connection_in(x: Array, w: Array, *, scale: float, gated: bool, arithmetic: Arithmetic) -> Array:
    """The streams added up by their weights (``GGML_OP_DSV4_HC_PRE``): [1, T, stream, n] -> [1, 1, T, n]."""
    weights = 1 / (1 + np.exp(-np.asarray(w[0], np.float64))) if gated else w[0, 0][:, :, None]
    return np.asarray(F(scale) * (x[0].astype(np.float64) * np.asarray(weights, F)).sum(1).astype(F))[None, None]


def hyper_connection_in_sizes(x: Array, w: Array, *, scale: float, gated: bool, arithmetic: Arithmetic) -> Array:
    """How large its terms are."""
    weights = 1 / (1 + np.exp(-np.asarray(w[0], np.float64))) if gated else w[0, 0][:, :, None]
    return np.asarray(np.sqrt(((x[0].astype(np.float64) * weights) ** 2).sum(1)) * abs(scale))[None, None]


def hyper_connection_out(
    x: Array, streams: Array, post: Array, mix: Array | None = None, *, arithmetic: Arithmetic
) -> Array:
    """A layer's result put back into the streams (``GGML_OP_DSV4_HC_POST``): [1, 1, T, n], [1, T, stream, n]."""
    y = x[0, 0][:, None, :].astype(np.float64) * post[0, 0][:, :, None]
    mixed = (
        streams[0]
        if mix is None
        else np.einsum("tse,tsd->tde", streams[0].astype(np.float64), mix[0].astype(np.float64))
    )
    return np.asarray(y + mixed, F)[None]
