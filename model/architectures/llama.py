"""The llama architecture: Llama 1 to 3, TinyLlama, SmolLM2, Mistral (Touvron et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from firstdiff.model import dense
from firstdiff.model.architecture import Rotation, Tensor
from firstdiff.model.dense import NODES, Cache, Hyperparameters, attention, feed_forward
from firstdiff.model.fields import Fields
from firstdiff.model.operations import add, embed, linear, rms_norm, rope
from firstdiff.model.probe import Probe
from firstdiff.model.value import Value
from firstdiff.model.weights import Weights

__all__ = ["NODES", "Cache", "forward", "read", "rotation", "tensors"]


def read(fields: Fields) -> Hyperparameters:
    """Read the hyperparameters of a file.

    Raises
    ------
    ModelError
        Where one is missing or is one that this architecture file does not compute.
    """
    fields.require("expert_count", 0, "no mixture of experts")
    return dense.read(fields)


def tensors(hp: Hyperparameters) -> Iterator[Tensor]:
    """Name, shape and whether it must be there, of every tensor that this architecture reads."""
    q, kv = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
    yield from dense.tensors(hp)
    yield "rope_freqs.weight", (hp.head_dim // 2,), False
    yield from dense.in_layers(
        hp,
        ("attn_norm.weight", (hp.n_embd,), True),
        ("ffn_norm.weight", (hp.n_embd,), True),
        ("attn_q.bias", (q,), False),
        ("attn_k.bias", (kv,), False),
        ("attn_v.bias", (kv,), False),
        ("attn_output.bias", (hp.n_embd,), False),
        ("ffn_gate.bias", (hp.n_ff,), False),
        ("ffn_up.bias", (hp.n_ff,), False),
        ("ffn_down.bias", (hp.n_embd,), False),
    )


def rotation(hp: Hyperparameters) -> Rotation:
    """Pairs of neighbours turn together, on Q and K whose rows were permuted for it at conversion."""
    of = {"Qcur_rope": "Qcur", "Kcur_rope": "Kcur"}
    return Rotation("interleaved", hp.head_dim, hp.rope_base, hp.rope_scale, of, factors="rope_freqs.weight")


def block(
    probe: Probe, x: Value, w: Weights, factors: object, hp: Hyperparameters, cache: Cache, positions: Sequence[int]
) -> Value:
    """One transformer block: x [token, n_embd] -> [token, n_embd]."""
    # attention
    h = probe("attn_norm", rms_norm, x, w["attn_norm.weight"], eps=hp.rms_eps)
    q = probe("Qcur", linear, h, w["attn_q.weight"], w.get("attn_q.bias"), heads=hp.n_head)  # [token, head, head_dim]
    k = probe("Kcur", linear, h, w["attn_k.weight"], w.get("attn_k.bias"), heads=hp.n_head_kv)
    v = probe("Vcur", linear, h, w["attn_v.weight"], w.get("attn_v.bias"), heads=hp.n_head_kv)
    turn = rotation(hp).attributes
    q = probe("Qcur_rope", rope, q, positions, factors, **turn)
    k = probe("Kcur_rope", rope, k, positions, factors, **turn)
    o = attention(probe, q, k, v, cache, group=hp.group, scale=hp.head_dim**-0.5)  # [token, n_head * head_dim]
    o = probe("attn_out", linear, o, w["attn_output.weight"], w.get("attn_output.bias"))  # [token, n_embd]
    x = probe("ffn_inp", add, o, x)

    # feed-forward
    h = probe("ffn_norm", rms_norm, x, w["ffn_norm.weight"], eps=hp.rms_eps)
    h = feed_forward(probe, h, w)
    return probe("l_out", add, h, x)


def forward(
    probe: Probe, tokens: Sequence[int], positions: Sequence[int], w: Weights, hp: Hyperparameters, cache: Cache
) -> Value:
    """One step: tokens [token] at positions [token] -> logits [token, n_vocab]; `cache` grows by the step."""
    factors = w.get("rope_freqs.weight")
    x = probe("embd", embed, tokens, w["token_embd.weight"])  # [token, n_embd]
    for layer in range(hp.n_layer):
        probe.layer = layer
        x = block(probe, x, w.layer(layer), factors, hp, cache, positions)
    probe.layer = None
    x = probe("result_norm", rms_norm, x, w["output_norm.weight"], eps=hp.rms_eps)
    return probe("result_output", linear, x, w.get("output.weight") or w["token_embd.weight"])
