"""What conversion to GGUF does to the tensors of families of models, undone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from builders.hugging_face import by_halves

Array = npt.NDArray[Any]
Change = Callable[[str, Array], Array]
Made = Callable[[Mapping[str, Array], str], tuple[Array, tuple[str, ...]]]
"""Makes a parameter of a layer of the file's tensors; with their names in it."""


def plus_one(name: str, x: Array) -> Array:
    """Gemma's norms are stored as what is added to 1, but in GGUF files."""
    return x - 1 if "norm" in name else x


def conv1d(name: str, x: Array) -> Array:
    """GPT-2 has its matrices the other way round."""
    return x.T if re.search(r"c_(attn|proj|fc)\.weight$", name) else x


def mamba(name: str, x: Array) -> Array:
    """Conversion takes the exponential of what makes a state decay."""
    return np.log(-x) if name.endswith("A_log") else x


def falcon(name: str, x: Array) -> Array:
    """Falcon has Q, K and V of one KV head after another: [group of q, k, v]. With one KV head they lie as in files."""
    if "query_key_value" not in name or len(x) != 512:
        return x
    q, k, v = np.split(x, (256, 384))
    parts = (q.reshape(2, 128, -1), k.reshape(2, 64, -1), v.reshape(2, 64, -1))
    return np.concatenate(parts, 1).reshape(x.shape)


def neox(name: str, x: Array) -> Array:
    """GPT-NeoX has Q, K and V of one head after another."""
    if "query_key_value" not in name:
        return x
    return np.stack([part.reshape(4, 64, -1) for part in np.split(x, 3)], 1).reshape(x.shape)


def heads_as_halves(heads: int, kv: int) -> Change:
    """Undo what conversion does to the rows of Q and K of an architecture that turns neighbours."""

    def change(name: str, x: Array) -> Array:
        count = {"q_proj": heads, "k_proj": kv}.get(name.split(".")[-2])
        return x if count is None else by_halves(x, count)

    return change


def joined(*tensors: str) -> Made:
    """Several tensors of a layer one below the other: a fused product."""
    return lambda values, layer: (np.concatenate([values[f"blk.{layer}.{t}"] for t in tensors], -2), tensors)


def interleaved(*tensors: str) -> Made:
    """Gate and up of experts in turn, as gpt-oss has them, and the other way round."""

    def made(values: Mapping[str, Array], layer: str) -> tuple[Array, tuple[str, ...]]:
        parts = [values[f"blk.{layer}.{t}"] for t in tensors]
        x = np.stack(parts, 2).reshape(len(parts[0]), -1, *parts[0].shape[2:])
        return (x.swapaxes(1, 2) if x.ndim == 3 else x), tensors

    return made


def keys_and_values(values: Mapping[str, Array], layer: str) -> tuple[Array, tuple[str, ...]]:
    """What keys and values are made of, of one head after another; the file has each in a matrix of its own."""
    tensors = "attn_k_b.weight", "attn_v_b.weight"
    k, v = (values[f"blk.{layer}.{t}"] for t in tensors)
    x = np.concatenate([k.swapaxes(1, 2), v], 1)
    return x.reshape(-1, x.shape[-1]), tensors


def turned(tensor: str) -> Made:
    """Experts' matrices the other way round."""
    return lambda values, layer: (values[f"blk.{layer}.{tensor}"].swapaxes(-1, -2), (tensor,))
