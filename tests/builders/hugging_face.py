"""transformers' models with the weights of GGUF files, read by the gguf package: no hand of ours in either.

transformers' own GGUF loader takes no biases, rope scaling or rope factors for a llama, and knows few architectures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
import transformers

Array = npt.NDArray[Any]

MODELS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config),
}
INTERLEAVED = {"llama"}
"""Architectures whose rows of Q and K conversion to GGUF puts in another order."""

MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hugging_face_model(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the model of a GGUF file as transformers' class, in a dtype; every tensor of the file is used."""
    reader = gguf.GGUFReader(path)
    keys = {name.split(".", 1)[-1]: field.contents() for name, field in reader.fields.items()}
    arch = keys["architecture"]
    values = {t.name: np.float32(gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    kind, config_kind = MODELS[arch]
    config = config_kind(**_config(keys, values))
    factors = values.pop("rope_freqs.weight", None)
    state = {}
    for name, x in values.items():
        *block, module, part = name.split(".")
        inside = f"model.layers.{block[1]}." if block else ""
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(module)
        x = by_halves(x, heads) if heads is not None and arch in INTERLEAVED else x  # noqa: PLW2901
        state[f"{inside}{MODULES[module]}.{part}"] = torch.tensor(x)
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model = kind(config)
    model.load_state_dict(state)  # strict: every name is met
    if factors is not None:
        model.model.rotary_emb.inv_freq /= torch.tensor(factors)
    for weight in model.parameters():  # model.to() would round the rotation's frequencies too
        weight.data = weight.data.to(dtype)
    return model.eval()


def by_halves(x: Array, heads: int) -> Array:
    """Undo what conversion to GGUF does to the rows of Q and K: pairs (2i, 2i + 1) become (i, i + D / 2)."""
    return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _config(keys: dict[str, Any], values: dict[str, Array]) -> dict[str, Any]:
    """Hyperparameters under transformers' names, from keys without the architecture before them."""
    n_embd, n_head = keys["embedding_length"], keys["attention.head_count"]
    return {
        "vocab_size": len(values["token_embd.weight"]),
        "hidden_size": n_embd,
        "intermediate_size": keys["feed_forward_length"],
        "num_hidden_layers": keys["block_count"],
        "num_attention_heads": n_head,
        "num_key_value_heads": keys["attention.head_count_kv"],
        "head_dim": keys.get("attention.key_length", n_embd // n_head),
        "max_position_embeddings": keys["context_length"],
        "rms_norm_eps": keys["attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": "output.weight" not in values,
        "attention_bias": "blk.0.attn_q.bias" in values,
        "mlp_bias": "blk.0.ffn_up.bias" in values,
        "rope_parameters": {**_scaling(keys), "rope_theta": keys["rope.freq_base"]},
    }


def _scaling(keys: dict[str, Any]) -> dict[str, Any]:
    factor = keys.get("rope.scaling.factor")
    if factor is None:
        return {"rope_type": "default"}
    if keys.get("rope.scaling.type") == "yarn":
        trained = keys["rope.scaling.original_context_length"]
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}
    return {"rope_type": "linear", "factor": factor}


HELD: dict[str, tuple[torch.dtype, float]] = {
    "f8_e4m3": (torch.float8_e4m3fn, 448.0),
    "f8_e5m2": (torch.float8_e5m2, 57344.0),
}


def hold(model: Any, kind: str, *parts: str) -> Any:
    """Round the model's weights as engines do that hold them in a kind, and compute in float32; torch rounds.

    Parameters
    ----------
    model
        From :func:`hugging_face_model`.
    kind
        ``f16``, ``bf16``, or ``f8_e4m3``, ``f8_e5m2``, ``i8`` with ``-row``, ``-tensor``, ``-64``.
    *parts
        Parts of the names of the parameters: ``layers``, ``proj``, ``norm``, ``lm_head``; all for none.
    """
    for name, weight in model.named_parameters():
        if not parts or any(part in name for part in parts):
            weight.data = held(weight.data, kind)
    return model


def held(w: torch.Tensor, kind: str) -> torch.Tensor:
    """Return a weight as an engine has it that holds it in a kind, float32."""
    if kind in ("f16", "bf16"):
        return w.to(torch.float16 if kind == "f16" else torch.bfloat16).float()
    number, _, by = kind.partition("-")
    dtype, largest = HELD.get(number, (None, 127.0))
    rows = w.reshape(len(w), -1, int(by)) if by.isdecimal() else w
    if by:
        most = rows.abs().amax() if by == "tensor" else rows.abs().amax(-1, keepdim=True)
        scale = most / largest
    else:
        scale = torch.ones(())
    codes = rows / scale
    codes = codes.round().clamp(-127, 127) if dtype is None else codes.to(dtype).float()
    return (codes * scale).reshape(w.shape)
