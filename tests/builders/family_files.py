"""transformers' models of the families of the conformance suite, from its GGUF files.

What a file states goes into transformers' configuration, and what transformers has under no such name is written out
for each architecture. Weights are read by the gguf package, and named by its own table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from builders.families import EXPERTS, FAMILIES, LAYER, ROPE, Family
from builders.family_models import filled
from builders.family_tensors import heads_as_halves, neox, plus_one

Keys = Mapping[str, Any]

BROAD = {"head_dim": 256, "query_pre_attn_scalar": 256}

MORE: dict[str, Family] = {
    "gemma": Family(
        "GemmaForCausalLM",
        {
            "head_dim": 64,
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": ROPE,
            "tie_word_embeddings": True,
        },
        change=plus_one,
    ),
    "llama": Family(
        "MixtralForCausalLM",
        {"rope_parameters": ROPE},
        change=heads_as_halves(4, 2),
        names={LAYER + r"mlp\.gate\.weight": "blk.{}.ffn_gate_inp.weight"},
        made=EXPERTS,
    ),
    "bloom": Family(
        "BloomForCausalLM",
        {"n_layer": 2, "n_head": 4, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False},
        names={
            r"transformer\.word_embeddings_layernorm\.(\w+)": "token_embd_norm.{}",
            r"transformer\.h\.(\d+)\.post_attention_layernorm\.(\w+)": "blk.{}.ffn_norm.{}",
        },
        change=neox,
    ),
    "phi3": replace(FAMILIES["phi3"], made={}),
    "deepseek2": replace(FAMILIES["deepseek2"], made={**FAMILIES["deepseek2"].made, **EXPERTS}),
}

STATED = {
    "block_count": ("num_hidden_layers", "n_layer"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier",),
    "use_parallel_residual": ("use_parallel_residual",),
    "ssm.state_size": ("state_size",),
}


def _windows(every: int) -> Callable[[Keys], dict[str, Any]]:
    """Layers of which each so many-th sees all tokens."""

    def made(keys: Keys) -> dict[str, Any]:
        kinds = ["full_attention" if (n + 1) % every == 0 else "sliding_attention" for n in range(keys["block_count"])]
        return {"layer_types": kinds}

    return made


def _gemma3(keys: Keys) -> dict[str, Any]:
    scaled = {"rope_type": "linear", "factor": keys["rope.scaling.factor"]} if "rope.scaling.factor" in keys else {}
    whole = {**ROPE, "rope_theta": keys["rope.freq_base"], **scaled}
    cap = {"final_logit_softcapping": keys.get("final_logit_softcapping")}
    return {
        **BROAD,
        **_windows(6)(keys),
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": whole},
        **cap,
    }


def _gemma2(keys: Keys) -> dict[str, Any]:
    return {**BROAD, **_windows(2)(keys), "final_logit_softcapping": keys["final_logit_softcapping"]}


def _partial(keys: Keys) -> dict[str, Any]:
    share = keys["rope.dimension_count"] / 64
    return {"partial_rotary_factor": share, "rope_parameters": {**ROPE, "partial_rotary_factor": share}}


def _gpt_oss(keys: Keys) -> dict[str, Any]:
    return {**_windows(2)(keys), "intermediate_size": keys["expert_feed_forward_length"]}


def _deepseek2(keys: Keys) -> dict[str, Any]:
    turned = keys["rope.dimension_count"]
    assert keys["expert_gating_func"] == 2, "transformers' DeepSeek V3 takes a sigmoid"
    return {
        "num_key_value_heads": keys["attention.head_count"],
        "q_lora_rank": keys["attention.q_lora_rank"],
        "kv_lora_rank": keys["attention.kv_lora_rank"],
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": keys["attention.key_length_mla"] - turned,
        "v_head_dim": keys["attention.value_length_mla"],
    }


def _falcon(keys: Keys) -> dict[str, Any]:
    if keys["attention.head_count_kv"] > 1:
        return {}
    return {"new_decoder_architecture": False, "multi_query": True}


def _mamba2(keys: Keys) -> dict[str, Any]:
    heads = keys["ssm.time_step_rank"]
    return {"num_heads": heads, "head_dim": keys["ssm.inner_size"] // heads, "n_groups": keys["ssm.group_count"]}


OWN: Mapping[str, Callable[[Keys], dict[str, Any]]] = {
    "gemma": lambda _: {"head_dim": 256},
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt-oss": _gpt_oss,
    "cohere2": lambda keys: {**_windows(4)(keys), "logit_scale": keys["logit_scale"]},
    "granite": lambda keys: {"logits_scaling": keys["logit_scale"]},
    "stablelm": _partial,
    "phi2": _partial,
    "phi3": lambda keys: {**_partial(keys), "sliding_window": None},
    "gptneox": _partial,
    "nemotron": _partial,
    "glm4": lambda keys: {**_partial(keys), "attention_bias": True},
    "deepseek2": _deepseek2,
    "falcon": _falcon,
    "smollm3": lambda _: {"no_rope_layers": [1, 1, 1, 0], "tie_word_embeddings": True},
    "lfm2": lambda _: {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "mamba": lambda keys: {"time_step_rank": keys["ssm.time_step_rank"]},
    "mamba2": _mamba2,
}


def is_family(path: Path) -> bool:
    """Whether a file is of a family: experts make a llama one."""
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    return arch in {**FAMILIES, **MORE} and (arch != "llama" or "llama.expert_count" in reader.fields)


def family_of_file(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model of a file."""
    reader = gguf.GGUFReader(path)
    arch = str(reader.fields["general.architecture"].contents())
    keys: dict[str, Any] = {
        name.removeprefix(f"{arch}."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith(f"{arch}.")
    }
    family = {**FAMILIES, **MORE}[arch]
    config = {of: keys[key] for key, names in STATED.items() if key in keys for of in names}
    config["tie_word_embeddings"] = not any(t.name == "output.weight" for t in reader.tensors)
    own = OWN[arch](keys) if arch in OWN else {}
    values = {t.name: np.float32(gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    config_kind = getattr(transformers, family.kind).config_class
    return filled(arch, replace(family, config={**family.config, **config, **own}), values, config_kind, dtype)
