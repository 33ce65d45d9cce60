"""Where models of transformers are tapped, by family: which module's output or input is which point."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    names
        The convention that what stands for points is named in: ``hf`` where that is the modules' own paths.
    """

    outputs: Mapping[str, str]
    inputs: Mapping[str, str] = field(default_factory=dict)
    attention: str | None = None
    heads_first: frozenset[str] = frozenset()
    names: str = "firstdiff"


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

_BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks|layer)\.[0-9]+")
_MIXTURE = re.compile(r"(?:.*\.)?(?:experts|router|gate)")


def taps_of(model: Any) -> Taps:  # noqa: ANN401 - torch.nn.Module
    """Taps of any model of transformers: every module that has parameters of its own, and every block.

    What they are called is their path: whoever judges the dump knows which tensors of the GGUF file that stands for.
    """
    outputs, inputs, attention = {"": "result_output"}, {}, None
    mixtures = {name.rpartition(".")[0] for name, _ in model.named_modules() if _MIXTURE.fullmatch(name)}
    head = model.get_output_embeddings()  # whose output the model returns, perhaps with something behind it
    for name, module in model.named_modules():
        if module is head:
            continue
        weights = dict(module.named_parameters(recurse=False))
        if weights or _BLOCK.fullmatch(name) or name in mixtures:
            outputs[name] = name
        if getattr(weights.get("weight"), "ndim", 0) == 2 and not hasattr(module, "num_embeddings"):  # noqa: PLR2004
            inputs[name] = f"{name}.input"
        if type(module).__name__.endswith("Attention") and getattr(module, "layer_idx", None) is not None:
            attention = attention or re.sub(r"\.[0-9]+\.", ".{layer}.", name)
    return Taps(outputs, inputs, attention, names="hf")
