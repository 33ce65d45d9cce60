"""The qwen3 architecture: Qwen 3 without experts (Yang et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from firstdiff.model import dense
from firstdiff.model.architecture import Nodes, Rotation, Tensor
from firstdiff.model.dense import Cache, Hyperparameters, attention, feed_forward, read
from firstdiff.model.operations import add, embed, linear, rms_norm, rope
from firstdiff.model.probe import Probe
from firstdiff.model.value import Value
from firstdiff.model.weights import Weights

__all__ = ["NODES", "Cache", "forward", "read", "rotation", "tensors"]

NODES: Nodes = {
    **dense.NODES,
    ("Qcur_normed", "MUL"): "Qcur_normed",
    ("Kcur_normed", "MUL"): "Kcur_normed",
}


def tensors(hp: Hyperparameters) -> Iterator[Tensor]:
    """Name, shape and whether it must be there, of every tensor that this architecture reads."""
    yield from dense.tensors(hp)
    yield from dense.in_layers(
        hp,
        ("attn_norm.weight", (hp.n_embd,), True),
        ("ffn_norm.weight", (hp.n_embd,), True),
        ("attn_q_norm.weight", (hp.head_dim,), True),
        ("attn_k_norm.weight", (hp.head_dim,), True),
    )


def rotation(hp: Hyperparameters) -> Rotation:
    """Dimensions i and i + head_dim / 2 turn together, after each head's norm."""
    of = {"Qcur_rope": "Qcur_normed", "Kcur_rope": "Kcur_normed"}
    return Rotation("half", hp.head_dim, hp.rope_base, hp.rope_scale, of)


def block(probe: Probe, x: Value, w: Weights, hp: Hyperparameters, cache: Cache, positions: Sequence[int]) -> Value:
    """One transformer block: x [token, n_embd] -> [token, n_embd]."""
    # attention
    h = probe("attn_norm", rms_norm, x, w["attn_norm.weight"], eps=hp.rms_eps)
    q = probe("Qcur", linear, h, w["attn_q.weight"], heads=hp.n_head)  # [token, head, head_dim]
    k = probe("Kcur", linear, h, w["attn_k.weight"], heads=hp.n_head_kv)
    v = probe("Vcur", linear, h, w["attn_v.weight"], heads=hp.n_head_kv)
    q = probe("Qcur_normed", rms_norm, q, w["attn_q_norm.weight"], eps=hp.rms_eps)  # each head by itself
    k = probe("Kcur_normed", rms_norm, k, w["attn_k_norm.weight"], eps=hp.rms_eps)
    turn = rotation(hp).attributes
    q = probe("Qcur_rope", rope, q, positions, **turn)
    k = probe("Kcur_rope", rope, k, positions, **turn)
    o = attention(probe, q, k, v, cache, group=hp.group, scale=hp.head_dim**-0.5)  # [token, n_head * head_dim]
    o = probe("attn_out", linear, o, w["attn_output.weight"])  # [token, n_embd]
    x = probe("ffn_inp", add, o, x)

    # feed-forward
    h = probe("ffn_norm", rms_norm, x, w["ffn_norm.weight"], eps=hp.rms_eps)
    h = feed_forward(probe, h, w)
    return probe("l_out", add, h, x)


def forward(
    probe: Probe, tokens: Sequence[int], positions: Sequence[int], w: Weights, hp: Hyperparameters, cache: Cache
) -> Value:
    """One step: tokens [token] at positions [token] -> logits [token, n_vocab]; `cache` grows by the step."""
    x = probe("embd", embed, tokens, w["token_embd.weight"])  # [token, n_embd]
    for layer in range(hp.n_layer):
        probe.layer = layer
        x = block(probe, x, w.layer(layer), hp, cache, positions)
    probe.layer = None
    x = probe("result_norm", rms_norm, x, w["output_norm.weight"], eps=hp.rms_eps)
    return probe("result_output", linear, x, w.get("output.weight") or w["token_embd.weight"])
