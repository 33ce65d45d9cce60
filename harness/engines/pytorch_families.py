"""Where models of transformers are tapped, by family: which module's output or input is which point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ATTENTION = "model.layers.{layer}.self_attn"

OUTPUTS = {
    "model.embed_tokens": "embd",
    "model.layers.{layer}.input_layernorm": "attn_norm",
    f"{ATTENTION}.q_proj": "Qcur",
    f"{ATTENTION}.k_proj": "Kcur",
    f"{ATTENTION}.v_proj": "Vcur",
    f"{ATTENTION}.o_proj": "attn_out",
    "model.layers.{layer}.post_attention_layernorm": "ffn_norm",
    "model.layers.{layer}.mlp.gate_proj": "ffn_gate",
    "model.layers.{layer}.mlp.up_proj": "ffn_up",
    "model.layers.{layer}.mlp.down_proj": "ffn_out",
    "model.layers.{layer}": "l_out",
    "model.norm": "result_norm",
    "": "result_output",  # the model itself: logits after whatever follows the last product
}
"""What modules return, by their path: the llama family, from which the others differ by a few lines."""

INPUTS = {
    f"{ATTENTION}.o_proj": "kqv_out",
    "model.layers.{layer}.post_attention_layernorm": "ffn_inp",
    "model.layers.{layer}.mlp.down_proj": "ffn_swiglu",
}
"""What modules are given, where no module of its own computes it."""

NORMED = {f"{ATTENTION}.q_norm": "Qcur_normed", f"{ATTENTION}.k_norm": "Kcur_normed"}


@dataclass(frozen=True, slots=True)
class Taps:
    """Where a model is tapped: paths of modules, with ``{layer}`` for the block's number, and their points.

    Parameters
    ----------
    outputs, inputs
        Points that are a module's output, and a module's first input.
    attention
        Path of the attention modules, if these can show their operands.
    heads_first
        Points whose tensors come as [1, H, T, D].
    """

    outputs: Mapping[str, str]
    inputs: Mapping[str, str] = field(default_factory=dict)
    attention: str | None = None
    heads_first: frozenset[str] = frozenset()


_LLAMA = Taps(OUTPUTS, INPUTS, ATTENTION)
FAMILIES: dict[str, Taps] = {
    **dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA),
    "qwen3": Taps({**OUTPUTS, **NORMED}, INPUTS, ATTENTION),
    "gemma3_text": Taps(
        {
            **OUTPUTS,
            **NORMED,
            "model.layers.{layer}.post_attention_layernorm": "attn_post_norm",
            "model.layers.{layer}.pre_feedforward_layernorm": "ffn_norm",
            "model.layers.{layer}.post_feedforward_layernorm": "ffn_post_norm",
        },
        {
            f"{ATTENTION}.o_proj": "kqv_out",
            "model.layers.{layer}.pre_feedforward_layernorm": "ffn_inp",
            "model.layers.{layer}.mlp.down_proj": "ffn_geglu",
        },
        ATTENTION,
        heads_first=frozenset(NORMED.values()),
    ),
}
"""By `config.model_type`. The paths are those of transformers 5, models/*/modeling_*.py."""
