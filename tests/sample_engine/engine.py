"""The forward pass. `put(point, value, layer)` records a value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model import Model

Put = Callable[..., None]


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)) * weight


def rope(x: np.ndarray, positions: np.ndarray, base: float) -> np.ndarray:
    """Turn x [token, head, dim] by its position, pairs of neighbours together."""
    size = x.shape[-1]
    theta = positions[:, None] * base ** (-np.arange(0, size, 2) / size)  # [token, pair]
    cos, sin = (f(theta).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


class Engine:
    def __init__(self, model: Model, put: Put) -> None:
        self.model, self.put = model, put
        self.heads, self.kv = model.number("attention.head_count"), model.number("attention.head_count_kv")
        self.eps = model.number("attention.layer_norm_rms_epsilon")
        self.base = model.number("rope.freq_base")
        self.cache: dict[tuple[str, int], np.ndarray] = {}

    def step(self, tokens: list[int], first: int) -> np.ndarray:
        """Logits [token, vocabulary] of tokens at the positions from `first` on."""
        w, positions = self.model.weights, first + np.arange(len(tokens))
        x = w["token_embd.weight"][tokens]
        self.put("embd", x)
        for layer in range(self.model.number("block_count")):
            x = self.block(x, positions, layer)
        x = norm(x, w["output_norm.weight"], self.eps)
        self.put("result_norm", x)
        logits = x @ w["output.weight"].T
        self.put("result_output", logits)
        return logits

    def block(self, x: np.ndarray, positions: np.ndarray, layer: int) -> np.ndarray:
        def weight(name: str) -> np.ndarray:
            return self.model.weights[f"blk.{layer}.{name}.weight"]

        def put(point: str, value: np.ndarray) -> np.ndarray:
            self.put(point, value, layer)
            return value

        h = put("attn_norm", norm(x, weight("attn_norm"), self.eps))
        tokens = len(x)
        q = put("Qcur", (h @ weight("attn_q").T).reshape(tokens, self.heads, -1))
        k = put("Kcur", (h @ weight("attn_k").T).reshape(tokens, self.kv, -1))
        v = put("Vcur", (h @ weight("attn_v").T).reshape(tokens, self.kv, -1))
        q = put("Qcur_rope", rope(q, positions, self.base))
        k = put("Kcur_rope", rope(k, positions, self.base))
        k, v = put("k_cache", self.kept("k", layer, k)), put("v_cache", self.kept("v", layer, v))
        k, v = (np.repeat(c, self.heads // self.kv, axis=1) for c in (k, v))
        scores = put("kq", np.einsum("qhd,khd->hqk", q, k))
        hidden = np.arange(scores.shape[-1])[None] > positions[:, None]
        scale = np.float32(1 / np.sqrt(q.shape[-1]))
        p = put("kq_soft_max", softmax(np.where(hidden, np.float32(-np.inf), scores * scale)))
        merged = put("kqv_out", np.einsum("hqk,khd->qhd", p, v).reshape(tokens, -1))
        x = put("ffn_inp", put("attn_out", merged @ weight("attn_output").T) + x)
        h = put("ffn_norm", norm(x, weight("ffn_norm"), self.eps))
        gate, up = put("ffn_gate", h @ weight("ffn_gate").T), put("ffn_up", h @ weight("ffn_up").T)
        out = put("ffn_out", put("ffn_swiglu", silu(gate) * up) @ weight("ffn_down").T)
        return put("l_out", out + x)

    def kept(self, name: str, layer: int, new: np.ndarray) -> np.ndarray:
        """The cache with the new tokens' values behind the old ones."""
        old = self.cache.get((name, layer))
        self.cache[name, layer] = new if old is None else np.concatenate([old, new])
        return self.cache[name, layer]
