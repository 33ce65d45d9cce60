"""A tiny model of every architecture that llama.cpp makes of hyperparameters alone.

The keys are in tests/data/architectures.json: those that most architectures take, those of experts, and what differs.
Sizes are multiples of 256, so that K quants apply; a window of 4 hides something in 9 tokens.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from builders.tiny_models import _SET_TENSOR, _library, _put
from firstdiff.engines import ggml
from firstdiff.engines.llamacpp_chatter import chatter

DATA = Path(__file__).parents[1] / "data" / "architectures.json"
WITHOUT_PREFIX = ("tokenizer.", "xielu.")


@cache
def _described() -> dict[str, Any]:
    described: dict[str, Any] = json.loads(DATA.read_text())
    return described


ARCHITECTURES = tuple(_described()["architectures"])
ENCODER_AND_DECODER = ("t5",)
"""What firstdiff does not run."""


def keys_of(arch: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """The hyperparameters of a tiny model, as the keys of its file, some of them others than usual."""
    own = _described()["architectures"][arch]
    experts = _described()["experts"] if own.get("experts") else {}
    keys = _described()["common"] | experts | own.get("keys", {}) | (more or {})
    keys = {key: value for key, value in keys.items() if value is not None}
    named = {key if key.startswith(WITHOUT_PREFIX) else f"{arch}.{key}": _typed(value) for key, value in keys.items()}
    n_vocab = keys["vocab_size"]
    return {
        "general.architecture": arch,
        **named,
        "tokenizer.ggml.model": "test",
        "tokenizer.ggml.tokens": [f"tok_{i}" for i in range(n_vocab)],
        "tokenizer.ggml.scores": np.zeros(n_vocab, np.float32),
    }


def _typed(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if value[0] == "u64":
        return np.array(value[1], np.uint64)
    return np.array(value, np.float32 if isinstance(value[0], float) else np.uint32)


def toy(arch: str, folder: Path, *, keys: dict[str, Any] | None = None, without: Sequence[str] = ()) -> Path:
    """Let llama.cpp make a tiny model with every tensor that the architecture can have, and write it, in F32.

    `keys` are others than usual, `without` are patterns of tensors that are left out.
    """
    lib, llama = _library(), ggml.bindings()
    left_out = _described()["architectures"][arch].get("left_out", []) + list(without)
    metadata, made = lib.gguf_init_empty(), dict[str, int]()

    def fill(address: int, _user: object) -> None:
        name = lib.ggml_get_name(address).decode()
        made[name] = address
        x = values(name, tuple(ggml.Tensor.from_address(address).ne)[::-1])
        lib.ggml_backend_tensor_set(address, x.ctypes.data, 0, x.nbytes)

    for key, value in keys_of(arch, keys).items():
        _put(metadata, key, value)
    params = llama.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    lib.llama_model_init_from_user.argtypes = [ctypes.c_void_p, _SET_TENSOR, ctypes.c_void_p, type(params)]
    out = folder / f"{arch}.gguf"
    with chatter(None) as said:
        model = lib.llama_model_init_from_user(metadata, _SET_TENSOR(fill), None, params)
        assert model, f"{arch}: llama.cpp makes no such model: {said[-3:]}"
        for name, address in made.items():
            if not any(re.search(pattern, name) for pattern in left_out):
                lib.gguf_add_tensor(metadata, address)
        assert lib.gguf_write_to_file(metadata, os.fsencode(out), False)
        llama.llama_model_free(model)
    lib.gguf_free(metadata)
    return out


def values(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw a tensor: norms around 1, states that decay, rope factors above 1."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape) * 0.1
    if "norm" in name and name.endswith("weight"):
        x += 1
    if "ssm_a" in name:
        x = -np.abs(x) * 10
    if name.endswith(("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")):
        x = 1 + np.abs(x) * 5
    return x.astype(np.float32)
