"""A second engine: transformers on a GGUF file's weights, right or patched, its run dumped under its own names."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch.nn.functional import rms_norm

import firstdiff.torch
from builders.hugging_face import hugging_face_model
from firstdiff.dumps import Trace, open_trace

Patch = Callable[[Any], object]

ATTENTION = "model.layers.{layer}.self_attn"
FFN = "model.layers.{layer}.mlp"
NAMES = {
    "model.embed_tokens": "embd",
    "model.layers.{layer}.input_layernorm": "attn_norm",
    f"{ATTENTION}.q_proj": "Qcur",
    f"{ATTENTION}.k_proj": "Kcur",
    f"{ATTENTION}.v_proj": "Vcur",
    f"{ATTENTION}.q_norm": "Qcur_normed",
    f"{ATTENTION}.k_norm": "Kcur_normed",
    f"{ATTENTION}.q_rope": "Qcur_rope",
    f"{ATTENTION}.k_rope": "Kcur_rope",
    f"{ATTENTION}.probs": "kq_soft_max",
    f"{ATTENTION}.heads": "kqv_out",
    f"{ATTENTION}.o_proj": "attn_out",
    "model.layers.{layer}.ffn_inp": "ffn_inp",
    "model.layers.{layer}.post_attention_layernorm": "ffn_norm",
    f"{FFN}.gate_proj": "ffn_gate",
    f"{FFN}.up_proj": "ffn_up",
    f"{FFN}.act": "ffn_swiglu",
    f"{FFN}.down_proj": "ffn_out",
    "model.layers.{layer}": "l_out",
    "model.norm": "result_norm",
    "lm_head": "result_output",
}
"""What the dump calls each point. Scores before the softmax and caches are not dumped."""

FLAT = ("Qcur", "Kcur", "Vcur")
"""Points that modules return as [token, feature]."""


def ran(path: Path, tokens: Sequence[int], *patches: Patch, decode: int = 1) -> Trace:
    """Run transformers' model, patched, and record what the second engine dumps: heads in Hugging Face's order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = hugging_face_model(path)
        for patch in patches:
            patch(model)
        trace = firstdiff.torch.record(model, tokens, decode=decode)
    finally:
        torch.set_num_threads(threads)
    return trace.without(lambda site: site.point not in NAMES.values())


def dumped(trace: Trace, folder: Path) -> Trace:
    """The trace as the second engine's own folder has it: its names, its shapes, nothing stated of its arithmetic."""
    folder.mkdir(parents=True)
    called = {point: name for name, point in NAMES.items()}
    steps = [{"tokens": list(step.tokens), "positions": list(step.positions)} for step in trace.steps]
    manifest = {
        "format": "firstdiff-trace",
        "version": 1,
        "engine": {"name": "second-engine", "version": "0", "backend": "torch-cpu"},
        "steps": steps,
        "names": NAMES,
    }
    (folder / "trace.json").write_text(json.dumps(manifest))
    for index in range(len(steps)):
        tensors = {}
        for site in trace:
            if site.step == index:
                x = np.ascontiguousarray(trace[site])
                name = called[site.point].replace("{layer}", str(site.layer))
                tensors[name] = x.reshape(len(x), -1) if site.point in FLAT else x
        save_file(tensors, folder / f"step-{index:03}.safetensors")
    return open_trace(folder)


# What can be wrong with it. Hooks that are there before those of the recorder see what it does not, and change it.


def positions_doubled(*layers: int) -> Patch:
    """Rotate Q and K of some layers by twice the positions."""

    def patch(model: Any) -> None:
        def before(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            turned = model.model.rotary_emb(kwargs["hidden_states"], position_ids=2 * kwargs["position_ids"])
            return args, kwargs | {"position_embeddings": turned}

        for layer in layers:
            model.model.layers[layer].self_attn.register_forward_pre_hook(before, with_kwargs=True)

    return patch


def activation_never_written_in_decode(model: Any) -> None:
    """Leave zeros where a step of one token has its activations."""
    for layer in model.model.layers:
        layer.mlp.act_fn.register_forward_hook(lambda _module, _args, x: 0 * x if x.shape[1] == 1 else x)


def heads_left_over(layer: int) -> Patch:
    """End the loop over a layer's heads at the size of a group: the buffer holds what the layer before left there."""

    def patch(model: Any) -> None:
        config, kept = model.config, []
        heads = config.num_attention_heads // config.num_key_value_heads
        layers = model.model.layers
        layers[layer - 1].self_attn.o_proj.register_forward_pre_hook(lambda _module, args: kept.append(args[0]))

        def before(_module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            written = heads * layers[layer].self_attn.head_dim
            return (torch.cat([args[0][..., :written], kept[-1][..., written:]], -1),)

        layers[layer].self_attn.o_proj.register_forward_pre_hook(before)

    return patch


def layers_cut(count: int) -> Patch:
    """Run the first layers only."""
    return lambda model: setattr(model.config, "num_hidden_layers", count)


def norm_weight_shifted(layer: int, *, token: int, by: int) -> Patch:
    """Read the weight of a layer's norms so many elements further on, from a token on."""

    def after(module: Any, args: tuple[torch.Tensor], right: torch.Tensor) -> torch.Tensor:
        x, weight = args[0], module.weight
        wrong = rms_norm(x, x.shape[-1:], weight.roll(-by), module.variance_epsilon)
        return torch.cat([right[:, :token], wrong[:, token:]], 1)

    def patch(model: Any) -> None:
        block = model.model.layers[layer]
        block.input_layernorm.register_forward_hook(after)
        block.post_attention_layernorm.register_forward_hook(after)

    return patch
