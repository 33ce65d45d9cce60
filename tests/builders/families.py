"""Families of models that have no file in model/architectures: transformers' class, and what its GGUF file has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from builders.family_tensors import (
    Change,
    Made,
    conv1d,
    falcon,
    heads_as_halves,
    interleaved,
    joined,
    keys_and_values,
    mamba,
    neox,
    plus_one,
    turned,
)

LEAN = (r"[.]scale$", r"input_scale$")
"""Tensors that no model of transformers has."""

BIASES = (*LEAN, r"[.]bias$")

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Family:
    """How a model of transformers is made of a tiny GGUF file.

    Parameters
    ----------
    kind
        The class of transformers.
    config
        What its configuration has beside :data:`SIZES`.
    keys
        What the file has beside its architecture's common keys.
    without
        Patterns of the tensors that are left out of the file.
    change
        What conversion to GGUF does to a tensor, undone.
    names
        Parameters that the gguf package's table does not have, and the file's tensors.
    made
        Parameters that are made of several tensors of a layer, or turned.
    """

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = BIASES
    change: Change = lambda _name, x: x
    names: dict[str, str] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)


LAYER = r"model\.layers\.(\d+)\."
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EXPERTS: dict[str, Made] = {
    LAYER + r"mlp\.experts\.gate_up_proj": joined("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    LAYER + r"mlp\.experts\.down_proj": joined("ffn_down_exps.weight"),
}
OLD = {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_inner": 512, "n_positions": 256, "layer_norm_epsilon": 1e-5}

FAMILIES: dict[str, Family] = {
    "gemma3": Family(
        "Gemma3ForCausalLM",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 4,
            "final_logit_softcapping": 30.0,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
        },
        change=plus_one,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        {
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 4,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
            "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": ROPE,
        },
        change=plus_one,
    ),
    "qwen3moe": Family(
        "Qwen3MoeForCausalLM",
        {
            "head_dim": 64,
            "moe_intermediate_size": 512,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "rope_parameters": ROPE,
        },
        made=EXPERTS,
    ),
    "gpt-oss": Family(
        "GptOssForCausalLM",
        {
            "head_dim": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": ROPE,
        },
        without=LEAN,
        names={
            LAYER + r"self_attn\.sinks": "blk.{}.attn_sinks.weight",
            LAYER + r"mlp\.router\.(\w+)": "blk.{}.ffn_gate_inp.{}",
            LAYER + r"mlp\.experts\.down_proj_bias": "blk.{}.ffn_down_exps.bias",
        },
        made={
            LAYER + r"mlp\.experts\.gate_up_proj": interleaved("ffn_gate_exps.weight", "ffn_up_exps.weight"),
            LAYER + r"mlp\.experts\.gate_up_proj_bias": interleaved("ffn_gate_exps.bias", "ffn_up_exps.bias"),
            LAYER + r"mlp\.experts\.down_proj": turned("ffn_down_exps.weight"),
        },
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {"rope_parameters": ROPE},
        keys={"attention.sliding_window": 256},
        without=(*BIASES, r"rope_factors"),
        made={
            LAYER + r"self_attn\.qkv_proj\.weight": joined("attn_q.weight", "attn_k.weight", "attn_v.weight"),
        },
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        {"rope_parameters": ROPE},
        keys={"attention.sliding_window": None, "attention.sliding_window_pattern": None},
    ),
    "granite": Family(
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 1.5,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.125,
            "rope_parameters": ROPE,
        },
        without=(*BIASES, r"rope_freqs"),
        change=heads_as_halves(4, 2),
    ),
    "gpt2": Family(
        "GPT2LMHeadModel", OLD | {"n_head": 4}, keys={"attention.head_count_kv": 4}, without=LEAN, change=conv1d
    ),
    "falcon": Family(
        "FalconForCausalLM",
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "bias": False,
            "parallel_attn": True,
            "alibi": False,
            "ffn_hidden_size": 512,
            "layer_norm_epsilon": 1e-5,
            "activation": "gelu_pytorch_tanh",
            "rope_parameters": ROPE,
        },
        without=LEAN,
        change=falcon,
    ),
    "starcoder2": Family(
        "Starcoder2ForCausalLM",
        {
            "norm_epsilon": 1e-5,
            "use_bias": True,
            "sliding_window": None,
            "rope_parameters": ROPE,
            "hidden_act": "gelu_pytorch_tanh",
        },
        without=LEAN,
    ),
    "stablelm": Family(
        "StableLmForCausalLM",
        {
            "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
        },
        keys={"rope.dimension_count": 32},
        without=(*LEAN, r"attn_(q|k|v|output)[.]bias$", r"ffn_(gate|up|down)[.]bias$", r"attn_[qk]_norm"),
    ),
    "phi2": Family(
        "PhiForCausalLM",
        {
            "layer_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
        },
        keys={"rope.dimension_count": 32},
        without=LEAN,
    ),
    "gptneox": Family(
        "GPTNeoXForCausalLM",
        {
            "layer_norm_eps": 1e-5,
            "use_parallel_residual": False,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": ROPE | {"partial_rotary_factor": 1.0},
        },
        keys={"attention.head_count_kv": 4},
        without=LEAN,
        change=neox,
    ),
    "cohere2": Family(
        "Cohere2ForCausalLM",
        {
            "layer_norm_eps": 1e-5,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "logit_scale": 1.0,
            "rope_parameters": ROPE,
            "tie_word_embeddings": True,
        },
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM", {"no_rope_layers": [1, 1], "rope_parameters": ROPE}, change=heads_as_halves(4, 2)
    ),
    "nemotron": Family(
        "NemotronForCausalLM",
        {"norm_eps": 1e-5, "partial_rotary_factor": 1.0, "rope_parameters": ROPE | {"partial_rotary_factor": 1.0}},
        without=(*LEAN, r"attn_(q|k|v|output)[.]bias$", r"ffn_(up|down)[.]bias$"),
        change=lambda name, x: x - 1 if "norm" in name and name.endswith("weight") else x,
    ),
    "exaone4": Family(
        "Exaone4ForCausalLM",
        {"head_dim": 64, "sliding_window": None, "layer_types": ["full_attention"] * 2, "rope_parameters": ROPE},
        without=(*BIASES, r"rope_freqs"),
    ),
    "glm4": Family(
        "Glm4ForCausalLM",
        {
            "head_dim": 64,
            "partial_rotary_factor": 0.5,
            "rope_parameters": ROPE | {"partial_rotary_factor": 0.5},
            "attention_bias": False,
        },
        keys={"rope.dimension_count": 32, "rope.dimension_sections": None},
    ),
    "qwen2moe": Family(
        "Qwen2MoeForCausalLM",
        {
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 256,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
            "rope_parameters": ROPE,
        },
        without=LEAN,
        made=EXPERTS,
    ),
    "olmoe": Family(
        "OlmoeForCausalLM",
        {
            "num_key_value_heads": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
            "rope_parameters": ROPE,
        },
        made=EXPERTS,
    ),
    "lfm2": Family(
        "Lfm2ForCausalLM",
        {
            "layer_types": ["full_attention", "conv"],
            "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": False,
            "norm_eps": 1e-5,
            "conv_bias": False,
            "rope_parameters": ROPE,
            "block_ff_dim": 512,
            "tie_word_embeddings": True,
        },
        keys={"attention.sliding_window": None},
        without=(*BIASES, r"dense_2", r"^output[.]"),
    ),
    "mamba2": Family(
        "Mamba2ForCausalLM",
        {
            "state_size": 128,
            "num_heads": 4,
            "head_dim": 128,
            "expand": 2,
            "conv_kernel": 4,
            "n_groups": 2,
            "layer_norm_epsilon": 1e-5,
            "use_bias": False,
            "use_conv_bias": True,
            "time_step_limit": (0.0, float("inf")),
        },
        without=LEAN,
        change=mamba,
        names={r"backbone\.layers\.(\d+)\.mixer\.dt_bias": "blk.{}.ssm_dt.bias"},
    ),
    "mamba": Family(
        "MambaForCausalLM",
        {"state_size": 128, "expand": 2, "conv_kernel": 4, "time_step_rank": 4, "layer_norm_epsilon": 1e-5},
        without=LEAN,
        change=mamba,
    ),
    "deepseek2": Family(
        "DeepseekV3ForCausalLM",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "q_lora_rank": 512,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 512,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "rope_parameters": ROPE,
            "rms_norm_eps": 1e-6,
        },
        keys={"expert_weights_norm": True, "attention.layer_norm_rms_epsilon": 1e-6},
        names={
            LAYER + r"mlp\.gate\.e_score_correction_bias": "blk.{}.exp_probs_b.bias",
            LAYER + r"mlp\.experts\.gate_up_proj": "blk.{}.ffn_gate_up_exps.weight",
            LAYER + r"mlp\.experts\.down_proj": "blk.{}.ffn_down_exps.weight",
        },
        made={LAYER + r"self_attn\.kv_b_proj\.weight": keys_and_values},
        without=LEAN,
    ),
}
