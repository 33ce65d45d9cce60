"""The llama architecture: Llama 1 to 3, TinyLlama, SmolLM2, Mistral (Touvron et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from firstdiff.model.arithmetic import Array
from firstdiff.model.errors import ModelError
from firstdiff.model.fields import Fields
from firstdiff.model.operations import (
    add,
    append,
    attend,
    embed,
    linear,
    rms_norm,
    rope,
    scores,
    soft_max,
    swiglu,
)
from firstdiff.model.probe import Probe
from firstdiff.model.weights import Weights


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """What the file says about the model, under llama.cpp's names where it has one."""

    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    rms_eps: float
    rope_base: float
    rope_scale: float  # positions are multiplied by it

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.n_head // self.n_head_kv


@dataclass(slots=True)
class Cache:
    """Keys and values of every layer, each [S, n_head_kv, head_dim]."""

    k: dict[int, Array] = field(default_factory=dict)
    v: dict[int, Array] = field(default_factory=dict)


def read(fields: Fields) -> Hyperparameters:
    """Read the hyperparameters of a file.

    Raises
    ------
    ModelError
        Where one is missing or is one that this architecture file does not compute.
    """
    n_embd, n_head = fields.positive("embedding_length"), fields.positive("attention.head_count")
    n_head_kv = fields.positive("attention.head_count_kv", n_head)
    head_dim = fields.positive("attention.key_length", n_embd // n_head)
    hp = Hyperparameters(
        n_vocab=fields.vocabulary_size(),
        n_ctx_train=fields.positive("context_length"),
        n_embd=n_embd,
        n_layer=fields.positive("block_count"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_ff=fields.positive("feed_forward_length"),
        rms_eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope_base=fields.number("rope.freq_base", 10000.0),
        rope_scale=1.0 / fields.rope_factor(),
    )
    path, arch = fields.path, fields.architecture
    if n_head % n_head_kv:
        raise ModelError(
            f"{path}: {n_head} heads ('{arch}.attention.head_count') cannot share {n_head_kv} KV heads "
            f"('{arch}.attention.head_count_kv') evenly: the file is damaged, convert the model again"
        )
    if head_dim % 2:  # llama.cpp ends the process over it
        raise ModelError(
            f"{path}: heads have {head_dim} dimensions ('{arch}.attention.key_length'), which cannot be rotated "
            "in pairs: the file is damaged, convert the model again"
        )
    fields.require("attention.value_length", head_dim, "the same as attention.key_length")
    fields.require("rope.dimension_count", head_dim, "no partial rotation")
    fields.require("expert_count", 0, "no mixture of experts")
    return hp


def tensors(hp: Hyperparameters) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name, shape and whether it must be there, of every tensor that this architecture reads."""
    q, kv = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
    yield "token_embd.weight", (hp.n_vocab, hp.n_embd), True
    yield "output_norm.weight", (hp.n_embd,), True
    yield "output.weight", (hp.n_vocab, hp.n_embd), False
    yield "rope_freqs.weight", (hp.head_dim // 2,), False
    layer = (
        ("attn_norm.weight", (hp.n_embd,), True),
        ("attn_q.weight", (q, hp.n_embd), True),
        ("attn_q.bias", (q,), False),
        ("attn_k.weight", (kv, hp.n_embd), True),
        ("attn_k.bias", (kv,), False),
        ("attn_v.weight", (kv, hp.n_embd), True),
        ("attn_v.bias", (kv,), False),
        ("attn_output.weight", (hp.n_embd, q), True),
        ("attn_output.bias", (hp.n_embd,), False),
        ("ffn_norm.weight", (hp.n_embd,), True),
        ("ffn_gate.weight", (hp.n_ff, hp.n_embd), True),
        ("ffn_gate.bias", (hp.n_ff,), False),
        ("ffn_up.weight", (hp.n_ff, hp.n_embd), True),
        ("ffn_up.bias", (hp.n_ff,), False),
        ("ffn_down.weight", (hp.n_embd, hp.n_ff), True),
        ("ffn_down.bias", (hp.n_embd,), False),
    )
    for i in range(hp.n_layer):
        for name, shape, required in layer:
            yield f"blk.{i}.{name}", shape, required


def block(
    probe: Probe,
    x: Array,
    w: Weights,
    factors: object,
    hp: Hyperparameters,
    cache: Cache,
    positions: Sequence[int],
) -> Array:
    """One transformer block: x [T, n_embd] -> [T, n_embd]."""
    layer = probe.layer or 0

    # attention
    h = probe("attn_norm", rms_norm, x, w["attn_norm.weight"], eps=hp.rms_eps)
    q = probe("Qcur", linear, h, w["attn_q.weight"], w.get("attn_q.bias"), heads=hp.n_head)  # [T, H, D]
    k = probe("Kcur", linear, h, w["attn_k.weight"], w.get("attn_k.bias"), heads=hp.n_head_kv)
    v = probe("Vcur", linear, h, w["attn_v.weight"], w.get("attn_v.bias"), heads=hp.n_head_kv)
    turn = {"pairing": "interleaved", "base": hp.rope_base, "scale": hp.rope_scale}
    q = probe("Qcur_rope", rope, q, positions, factors, **turn)
    k = probe("Kcur_rope", rope, k, positions, factors, **turn)
    keys = cache.k[layer] = probe("k_cache", append, cache.k.get(layer), k)  # [S, H_kv, D]
    values = cache.v[layer] = probe("v_cache", append, cache.v.get(layer), v, values=True)
    kq = probe("kq", scores, q, keys, group=hp.group)  # [H, T, S]
    p = probe("kq_soft_max", soft_max, kq, scale=hp.head_dim**-0.5)
    o = probe("kqv_out", attend, p, values, group=hp.group)  # [T, H * D]
    o = probe("attn_out", linear, o, w["attn_output.weight"], w.get("attn_output.bias"))  # [T, n_embd]
    x = probe("ffn_inp", add, o, x)

    # feed-forward
    h = probe("ffn_norm", rms_norm, x, w["ffn_norm.weight"], eps=hp.rms_eps)
    gate = probe("ffn_gate", linear, h, w["ffn_gate.weight"], w.get("ffn_gate.bias"))  # [T, n_ff]
    up = probe("ffn_up", linear, h, w["ffn_up.weight"], w.get("ffn_up.bias"))
    h = probe("ffn_swiglu", swiglu, gate, up)
    h = probe("ffn_out", linear, h, w["ffn_down.weight"], w.get("ffn_down.bias"))  # [T, n_embd]
    return probe("l_out", add, h, x)


def forward(
    probe: Probe,
    tokens: Sequence[int],
    positions: Sequence[int],
    w: Weights,
    hp: Hyperparameters,
    cache: Cache,
) -> Array:
    """One step: tokens [T] at positions [T] -> logits [T, n_vocab]; `cache` grows by T."""
    factors = w.get("rope_freqs.weight")
    x = probe("embd", embed, tokens, w["token_embd.weight"])  # [T, n_embd]
    for layer in range(hp.n_layer):
        probe.layer = layer
        x = block(probe, x, w.layer(layer), factors, hp, cache, positions)
    probe.layer = None
    x = probe("result_norm", rms_norm, x, w["output_norm.weight"], eps=hp.rms_eps)
    return probe("result_output", linear, x, w.get("output.weight") or w["token_embd.weight"])
