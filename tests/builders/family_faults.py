"""Faults put into models of transformers of any family: what is changed, where it shows first, what it is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LAYER = 1
"""The layer that is changed, where it is one."""


@dataclass(frozen=True)
class Fault:
    """One way of breaking a model.

    Parameters
    ----------
    put
        Breaks the model; False for one that has no such part.
    at
        Points of which one is the first to go wrong, as patterns.
    called
        Hypotheses of which one explains it.
    layer
        Where it shows first.
    """

    put: Callable[[Any], bool]
    at: str
    called: tuple[str, ...]
    layer: int = LAYER


def _layers(model: Any) -> Any:
    return next(m for name, m in model.named_modules() if re.fullmatch(r".*\.(layers|h)", name))


def _part(model: Any, *names: str) -> Any:
    """The first module of a layer that has one of these names."""
    found = {name.rpartition(".")[2]: m for name, m in _layers(model)[LAYER].named_modules()}
    return next((found[name] for name in names if name in found), None)


def _scale(model: Any) -> bool:
    """Scores divided by the number of dimensions of a head, and not by its root."""
    for module in _layers(model)[LAYER].modules():
        if isinstance(getattr(module, "scaling", None), float) and hasattr(module, "layer_idx"):
            module.scaling = module.scaling**2
            return type(module).__module__.rpartition(".")[2] not in ("modeling_falcon", "modeling_gpt_neox")
    return False


def _eps(model: Any) -> bool:
    norm = _part(model, "input_layernorm", "ln_1", "ln_attn", "operator_norm", "norm", "post_attention_layernorm")
    name = next(name for name in ("variance_epsilon", "eps") if hasattr(norm, name))
    setattr(norm, name, 1e-3)
    return True


def _transposed(model: Any) -> bool:
    product = _part(model, "o_proj", "dense", "out_proj")
    if product is None or product.weight.shape[0] != product.weight.shape[1]:
        product = _layers(model)[LAYER].attn.c_proj if hasattr(_layers(model)[LAYER], "attn") else None
    if product is None:
        return False
    with torch.no_grad():
        product.weight.copy_(product.weight.T.clone())
    return True


def _activation(model: Any) -> bool:
    """The exact GELU for the approximate one, or that for SiLU."""
    if hasattr(_layers(model)[LAYER], "mixer"):
        return False
    for module in _layers(model)[LAYER].modules():
        for name in ("act_fn", "act", "activation_fn"):
            kind = type(getattr(module, name, None)).__name__.lower()
            if kind.startswith(("gelu", "newgelu", "pytorchgelu")):
                setattr(module, name, torch.nn.GELU())
                return True
            if kind.startswith("silu"):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
                return True
    return False


def _base(model: Any) -> bool:
    """Another base of the rotation, in all layers."""
    found = False
    for module in model.modules():
        for name, x in list(module.named_buffers(recurse=False)):
            if name.endswith("inv_freq") and "original" not in name:
                n = torch.arange(len(x)) / len(x)
                module.register_buffer(name, 1 / 500000.0**n, persistent=False)
                found = True
    return found


def _norm_weight(model: Any) -> bool:
    """The weight of a norm read from one number further on."""
    norm = _part(model, "ln_2", "post_attention_layernorm", "input_layernorm", "ffn_norm", "ln_mlp")
    norm = _layers(model)[LAYER].norm if norm is None else norm
    with torch.no_grad():
        norm.weight.copy_(norm.weight.roll(-1))
    return True


FAULTS = {
    "scale": Fault(_scale, "kq_soft_max|kqv_out", ("scale-wrong",)),
    "eps": Fault(_eps, ".*norm.*", ("norm-eps",)),
    "transposed": Fault(_transposed, "attn_out|.*out_proj", ("weight-transposed",)),
    "activation": Fault(_activation, "ffn_(swiglu|geglu|gelu|moe_out)", ("activation-wrong", "gelu-wrong")),
    "base": Fault(_base, "Qcur_rope|kqv_out|kq|k_cache", ("rope-base",), layer=0),
    "norm-weight": Fault(_norm_weight, ".*norm.*|.*ffn_out", ("weight-view-offset",)),
}
