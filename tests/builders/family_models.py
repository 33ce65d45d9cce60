"""transformers' models of families, with the weights of tiny GGUF files.

Names are mapped by the gguf package's own table, in the direction in which it converts models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from builders.every_architecture import toy
from builders.families import FAMILIES, SIZES, Family
from builders.family_tensors import Array


def family_model(arch: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Any]:
    """Make a tiny GGUF file, and transformers' model with its weights; every parameter is filled."""
    family = FAMILIES[arch]
    path = toy(arch, folder, keys=family.keys, without=family.without)
    reader = gguf.GGUFReader(path)
    values = {t.name: np.float32(gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    config_kind = getattr(transformers, family.kind).config_class
    return path, filled(arch, family, values, config_kind, dtype)


def filled(arch: str, family: Family, values: Mapping[str, Array], config_kind: Any, dtype: torch.dtype) -> Any:
    """transformers' model with the values of a file; every parameter is filled, and every value taken."""
    model = getattr(transformers, family.kind)(config_kind(**{**SIZES, **family.config}))
    layers = model.config.num_hidden_layers
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), layers)
    state: dict[str, torch.Tensor] = {}
    used: set[str | None] = set()
    tied = model.config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            state[name] = state["model.embed_tokens.weight"]
            continue
        made = _made(family, values, name)
        if made is None:
            of = _file_name(family, names, name)
            assert of in values, f"{name}: the file has no {of}"
            made = family.change(name, values[of]), (of,)
        x = made[0]
        x = x.reshape(weight.shape) if x.size == weight.numel() and x.ndim != weight.ndim else x
        used |= set(made[1])
        assert x.shape == tuple(weight.shape), f"{name}: {x.shape} for {tuple(weight.shape)}"
        state[name] = torch.tensor(np.ascontiguousarray(x))
    assert used == set(values), f"not in transformers' model: {sorted(set(values) - used)}"
    model.load_state_dict(state)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model.eval()


def _file_name(family: Family, names: Any, name: str) -> str | None:
    for pattern, of in family.names.items():
        if found := re.fullmatch(pattern, name):
            return of.format(*found.groups())
    return names.get_name(name, try_suffixes=(".weight", ".bias"))


def _made(family: Family, values: Mapping[str, Array], name: str) -> tuple[Array, tuple[str, ...]] | None:
    """A parameter that is made of several tensors, and their names."""
    for pattern, make in family.made.items():
        if found := re.fullmatch(pattern, name):
            x, tensors = make(values, found[1])
            return x, tuple(f"blk.{found[1]}.{t}" for t in tensors)
    return None
