"""What dense decoders share: hyperparameters, the KV cache, and the verbs of attention and of the feed-forward network.

A verb holds calls of the probe and no switches: an architecture that does something else writes it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from firstdiff.model import architecture
from firstdiff.model.architecture import Nodes, Tensor
from firstdiff.model.attention import append, attend, scores, soft_max
from firstdiff.model.errors import ModelError
from firstdiff.model.fields import Fields
from firstdiff.model.operations import linear, swiglu
from firstdiff.model.probe import Probe
from firstdiff.model.value import Value
from firstdiff.model.weights import Weights


@dataclass(frozen=True, slots=True)
class Hyperparameters(architecture.Hyperparameters):
    """Those of a decoder whose layers are alike, with rotated heads of one size."""

    rms_eps: float
    rope_base: float
    rope_scale: float  # positions are multiplied by it

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.n_head // self.n_head_kv


def read(fields: Fields) -> Hyperparameters:
    """Read the hyperparameters of a decoder whose layers are alike, with rotated heads of one size.

    Raises
    ------
    ModelError
        Where one is missing or damaged, or asks for something else.
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
    name = fields.architecture
    if n_head % n_head_kv:
        raise ModelError(
            f"{fields.path}: {n_head} heads ('{name}.attention.head_count') cannot share {n_head_kv} KV heads "
            f"('{name}.attention.head_count_kv') evenly: the file is damaged, convert the model again"
        )
    if head_dim % 2:  # llama.cpp ends the process over it
        raise ModelError(
            f"{fields.path}: heads have {head_dim} dimensions ('{name}.attention.key_length'), which cannot be rotated "
            "in pairs: the file is damaged, convert the model again"
        )
    fields.require("attention.value_length", head_dim, "the same as attention.key_length")
    fields.require("rope.dimension_count", head_dim, "no partial rotation")
    return hp


def tensors(hp: Hyperparameters) -> Iterator[Tensor]:
    """The tensors that every dense decoder has: two ends, the last norm, seven products."""
    q, kv = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
    yield "token_embd.weight", (hp.n_vocab, hp.n_embd), True
    yield "output_norm.weight", (hp.n_embd,), True
    yield "output.weight", (hp.n_vocab, hp.n_embd), False
    yield from in_layers(
        hp,
        ("attn_q.weight", (q, hp.n_embd), True),
        ("attn_k.weight", (kv, hp.n_embd), True),
        ("attn_v.weight", (kv, hp.n_embd), True),
        ("attn_output.weight", (hp.n_embd, q), True),
        ("ffn_gate.weight", (hp.n_ff, hp.n_embd), True),
        ("ffn_up.weight", (hp.n_ff, hp.n_embd), True),
        ("ffn_down.weight", (hp.n_embd, hp.n_ff), True),
    )


def in_layers(hp: Hyperparameters, *layer: Tensor) -> Iterator[Tensor]:
    """The same tensors in every layer: ``attn_q.weight`` is ``blk.3.attn_q.weight`` in layer 3."""
    for i in range(hp.n_layer):
        for name, shape, required in layer:
            yield f"blk.{i}.{name}", shape, required


NODES: Nodes = {
    ("embd", "GET_ROWS"): "embd",
    ("attn_norm", "MUL"): "attn_norm",
    **{(f"{x}cur", op): f"{x}cur" for x in "QKV" for op in ("MUL_MAT", "ADD")},
    ("Qcur", "ROPE"): "Qcur_rope",
    ("Kcur", "ROPE"): "Kcur_rope",
    ("kq", "MUL_MAT"): "kq",
    ("kq_soft_max", "SOFT_MAX"): "kq_soft_max",
    ("kqv", "MUL_MAT"): "v_cache",  # its first operand
    ("kqv_out", "CONT"): "kqv_out",
    ("kqv_out", "RESHAPE"): "kqv_out",  # of flash attention, which has no node for kq and kq_soft_max
    ("attn_out", "MUL_MAT"): "attn_out",
    ("attn_out", "ADD"): "attn_out",
    ("attn_output.weight", "MUL_MAT"): "attn_out",
    ("ffn_inp", "ADD"): "ffn_inp",
    ("ffn_norm", "MUL"): "ffn_norm",
    ("ffn_gate", "MUL_MAT"): "ffn_gate",
    ("ffn_gate_b", "ADD"): "ffn_gate",
    ("ffn_up", "MUL_MAT"): "ffn_up",
    ("ffn_up_b", "ADD"): "ffn_up",
    ("ffn_swiglu", "SWIGLU"): "ffn_swiglu",
    ("ffn_out", "MUL_MAT"): "ffn_out",
    ("ffn_out", "ADD"): "ffn_out",
    ("l_out", "ADD"): "l_out",
    ("result_norm", "MUL"): "result_norm",
    ("result_output", "MUL_MAT"): "result_output",
    ("result_output", "ADD"): "result_output",
}
"""llama.cpp's nodes of dense decoders."""


@dataclass(slots=True)
class Cache:
    """Keys and values of every layer, each [position, head, head_dim] of n_head_kv heads."""

    k: dict[int, Value] = field(default_factory=dict)
    v: dict[int, Value] = field(default_factory=dict)


def attention(probe: Probe, q: Value, k: Value, v: Value, cache: Cache, *, group: int, scale: float) -> Value:
    """Causal attention from rotated q and k and from v, each [token, head, head_dim], to merged heads [token, feature].

    `group` query heads share a KV head; `scale` multiplies the scores.
    """
    layer = probe.layer or 0
    keys = cache.k[layer] = probe("k_cache", append, cache.k.get(layer), k)  # [position, head, head_dim]
    values = cache.v[layer] = probe("v_cache", append, cache.v.get(layer), v, values=True)
    kq = probe("kq", scores, q, keys, group=group)  # [head, token, position]
    p = probe("kq_soft_max", soft_max, kq, scale=scale)
    return probe("kqv_out", attend, p, values, group=group)


def feed_forward(probe: Probe, h: Value, w: Weights) -> Value:
    """The gated feed-forward network with SiLU (Shazeer 2020), [token, n_embd] -> [token, n_embd]."""
    gate = probe("ffn_gate", linear, h, w["ffn_gate.weight"], w.get("ffn_gate.bias"))  # [token, n_ff]
    up = probe("ffn_up", linear, h, w["ffn_up.weight"], w.get("ffn_up.bias"))
    h = probe("ffn_swiglu", swiglu, gate, up)
    return probe("ffn_out", linear, h, w["ffn_down.weight"], w.get("ffn_down.bias"))
