"""transformers' models of families that have no file in model/architectures, with the weights of tiny GGUF files.

Names are mapped by the gguf package's own table, in the direction in which it converts models.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
import transformers

from builders.every_architecture import toy

Array = npt.NDArray[Any]
Change = Callable[[str, Array], Array]

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
    """

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = BIASES
    change: Change = lambda _name, x: x
    names: dict[str, str] = field(default_factory=dict)


def _plus_one(name: str, x: Array) -> Array:
    """Gemma's norms are stored as what is added to 1, but in GGUF files."""
    return x - 1 if "norm" in name else x


def _conv1d(name: str, x: Array) -> Array:
    """GPT-2 has its matrices the other way round."""
    return x.T if re.search(r"c_(attn|proj|fc)\.weight$", name) else x


ROPE = {"rope_type": "default", "rope_theta": 10000.0}

FAMILIES: dict[str, Family] = {
    "gemma3": Family(
        "Gemma3ForCausalLM",
        {
            "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 4, "final_logit_softcapping": 30.0,
            "layer_types": ["sliding_attention", "full_attention"], "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
        },
        change=_plus_one,
    ),
}  # fmt: skip


def family_model(arch: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Any]:
    """Make a tiny GGUF file, and transformers' model with its weights; every parameter is filled."""
    family = FAMILIES[arch]
    path = toy(arch, folder, keys=family.keys, without=family.without)
    reader = gguf.GGUFReader(path)
    values = {t.name: np.float32(gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    config_kind = getattr(transformers, family.kind).config_class
    model = getattr(transformers, family.kind)(config_kind(**{**SIZES, **family.config}))
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), 2)
    state, used = {}, set()
    for name, weight in model.state_dict().items():
        of = _file_name(family, names, name)
        assert of in values, f"{name}: the file has no {of}"
        used.add(of)
        x = family.change(name, values[of])
        assert x.shape == tuple(weight.shape), f"{name}: {x.shape} for {tuple(weight.shape)}"
        state[name] = torch.tensor(np.ascontiguousarray(x))
    assert used == set(values), f"not in transformers' model: {sorted(set(values) - used)}"
    model.load_state_dict(state)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return path, model.eval()


def _file_name(family: Family, names: Any, name: str) -> str | None:
    for pattern, of in family.names.items():
        if found := re.fullmatch(pattern, name):
            return of.format(*found.groups())
    return names.get_name(name, try_suffixes=(".weight", ".bias"))
