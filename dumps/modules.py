"""Modules of transformers, and the tensors of a GGUF file that their parameters are converted to.

A module's output is what reads its weight, so that a path says which tensor of any architecture it is. Where one name
stands for several tensors, the first that a file has counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from firstdiff.dumps.names import OUTPUT_ENDS, WRAPPERS

_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks|layer)\.(?P<layer>0|[1-9][0-9]{0,5})(?:\.(?P<module>.+))?")
_INPUT = re.compile(r"(?P<path>.+)\.input(?:\.0)?")


def _table(lines: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for line in lines:
        modules, tensors = line.split("->")
        table |= dict.fromkeys(modules.split(), tuple(tensors.split()))
    return table


OUTSIDE = _table(
    (
        "embed_tokens wte word_embeddings embed_in embeddings tok_embeddings embedding -> token_embd",
        "wpe position_embeddings embed_positions -> position_embd",
        "norm ln_f final_layernorm final_layer_norm norm_f -> output_norm",
        "embedding_norm -> token_embd_norm output_norm",
        "word_embeddings_layernorm -> token_embd_norm",
        "lm_head embed_out -> output token_embd",
    )
)
"""Paths outside of the blocks, and tensors."""

FUSED: Mapping[str, str] = {"attn_qkv": "wqkv", "ffn_gate_up": "ffn_gate_up"}
"""What a fused product is called where the file has its parts apart."""

INSIDE = _table(
    (
        "input_layernorm ln_1 operator_norm norm attention_norm ln_mlp -> attn_norm",
        "ln_attn -> attn_norm_2 attn_norm",
        "self_attn.q_proj attn.q_proj attention.q_proj -> attn_q",
        "self_attn.k_proj attn.k_proj attention.k_proj -> attn_k",
        "self_attn.v_proj attn.v_proj attention.v_proj -> attn_v",
        "self_attn.qkv_proj attn.c_attn self_attention.query_key_value attention.query_key_value attn.Wqkv -> attn_qkv",
        "self_attn.o_proj self_attn.dense self_attn.out_proj attn.c_proj attn.out_proj -> attn_output",
        "self_attention.dense attention.dense -> attn_output",
        "self_attn.q_norm self_attn.q_layernorm attention.q_norm -> attn_q_norm",
        "self_attn.k_norm self_attn.k_layernorm attention.k_norm -> attn_k_norm",
        "post_attention_layernorm -> post_attention_norm ffn_norm",
        "post_self_attn_layernorm -> post_attention_norm",
        "pre_feedforward_layernorm pre_mlp_layernorm ln_2 ffn_norm -> ffn_norm",
        "post_feedforward_layernorm post_mlp_layernorm -> post_ffw_norm",
        "mlp.gate_proj feed_forward.w1 feed_forward.gate_proj -> ffn_gate",
        "mlp.up_proj mlp.c_fc mlp.fc1 mlp.dense_h_to_4h -> ffn_up",
        "mlp.gate_up_proj feed_forward.gate_up_proj -> ffn_gate_up ffn_up",
        "feed_forward.w3 feed_forward.up_proj -> ffn_up",
        "mlp.down_proj mlp.c_proj mlp.fc2 mlp.dense_4h_to_h feed_forward.w2 feed_forward.down_proj -> ffn_down",
        "mlp.gate mlp.router block_sparse_moe.gate feed_forward.router -> ffn_gate_inp",
        "mlp.shared_experts.gate_proj mlp.shared_expert.gate_proj -> ffn_gate_shexp",
        "mlp.shared_experts.up_proj mlp.shared_expert.up_proj -> ffn_up_shexp",
        "mlp.shared_experts.down_proj mlp.shared_expert.down_proj -> ffn_down_shexp",
        "mlp.shared_expert_gate -> ffn_gate_inp_shexp",
        "self_attn.q_a_proj -> attn_q_a",
        "self_attn.q_a_layernorm -> attn_q_a_norm",
        "self_attn.q_b_proj -> attn_q_b",
        "self_attn.kv_a_proj_with_mqa -> attn_kv_a_mqa",
        "self_attn.kv_a_layernorm -> attn_kv_a_norm",
        "self_attn.kv_b_proj -> attn_kv_b",
        "mixer.in_proj mamba.in_proj -> ssm_in",
        "mixer.conv1d mamba.conv1d -> ssm_conv1d",
        "mixer.x_proj mamba.x_proj -> ssm_x",
        "mixer.dt_proj mamba.dt_proj -> ssm_dt",
        "mixer.norm mamba.norm -> ssm_norm",
        "mixer.out_proj mamba.out_proj -> ssm_out",
        "conv.in_proj -> shortconv.in_proj",
        "conv.conv -> shortconv.conv",
        "conv.out_proj -> shortconv.out_proj",
    )
)
"""Paths inside of a block, and tensors of it."""

POINTS: Mapping[str, tuple[str, ...]] = {
    "mlp.experts": ("ffn_moe_out",),
    "mlp": ("ffn_out", "ffn_moe_out"),
    "mlp.gate.indices": ("ffn_moe_topk",),
    "mlp.router.indices": ("ffn_moe_topk",),
    "block_sparse_moe.gate.indices": ("ffn_moe_topk",),
    "": ("l_out",),
}
"""Paths inside of a block whose output reads no one weight, and points; of several the first that a model has."""


def tensors_of(path: str) -> tuple[int | None, tuple[str, ...], bool] | None:
    """The layer that a path says, the tensors that it may stand for, and whether it is the module's input.

    None for a path that is not known.
    """
    given = _INPUT.fullmatch(path)
    inner = OUTPUT_ENDS.sub("", given["path"] if given else path)
    found = _LAYER.fullmatch(inner)
    if found is not None:
        tensors = INSIDE.get(found["module"] or "")
        return None if tensors is None else (int(found["layer"]), tensors, given is not None)
    wrapped = WRAPPERS.match(inner)
    tensors = OUTSIDE.get(inner[wrapped.end() :] if wrapped else inner)
    return None if tensors is None else (None, tensors, given is not None)


def points_of(path: str) -> tuple[int, tuple[str, ...]] | None:
    """The layer and the points of a path of no one weight; None for any other path."""
    found = _LAYER.fullmatch(OUTPUT_ENDS.sub("", path))
    points = None if found is None else POINTS.get(found["module"] or "")
    return None if found is None or points is None else (int(found["layer"]), points)
