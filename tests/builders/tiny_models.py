"""Tiny models of many architectures, made by llama.cpp itself and quantised by its own quantiser.

From hyperparameters only, llama.cpp creates every tensor that an architecture can have and asks for its values. So no
table of names and shapes of ours can be wrong. Left out are the optional tensors that real files do not have.
"""

from __future__ import annotations

import ctypes
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from builders.models import FILE_TYPES, MIXED, quantised
from firstdiff.engines import ggml
from firstdiff.engines.llamacpp_chatter import chatter
from firstdiff.model.synthetic import BRANCHES, vocabulary

Array = npt.NDArray[np.float32]
_SET_TENSOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)  # llama_model_set_tensor_data_t


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a tiny model; all row lengths are multiples of 256, so that K quants apply."""

    n_layer: int = 4
    n_embd: int = 256
    n_head: int = 8
    n_head_kv: int = 4
    head_dim: int = 32
    n_ff: int = 512
    n_vocab: int = 384
    n_ctx: int = 512
    rope_base: float = 10000.0
    eps: float = 1e-5
    tied: bool = False
    keys: Mapping[str, Any] = field(default_factory=dict)
    """More metadata, without the architecture before the key; None takes a key away."""


EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 256}
WINDOW = {"attention.sliding_window": 4, "attention.sliding_window_pattern": 2}

SHAPES = {
    "llama": Shape(),
    "qwen2": Shape(rope_base=1e6, eps=1e-6),
    "qwen3": Shape(rope_base=1e6, eps=1e-6, head_dim=64, tied=True),
    "qwen3moe": Shape(rope_base=1e6, eps=1e-6, head_dim=64, keys=EXPERTS),
    "gemma3": Shape(rope_base=1e6, eps=1e-6, head_dim=64, n_head_kv=2, tied=True, keys=WINDOW),
}
"""What real models of an architecture have in common; any other is made from the defaults."""

OPTIONAL = {"qwen2": r"attn_[qkv]\.bias"}
"""Optional tensors that real files do have, as patterns."""

ABSENT = re.compile(r".*(\.bias|scale|rope_freqs\.weight|rope_factors_\w+\.weight|cls\.output\.weight)")


def tiny(arch: str, folder: Path, *, file_type: str = "F32", seed: int = 0, optional: str = "", **shape: Any) -> Path:
    """Write a tiny model of random weights, and return its path; equal arguments make equal files.

    Parameters
    ----------
    arch
        llama.cpp's name of the architecture.
    folder
        Where ``{arch}-{file_type}.gguf`` goes.
    file_type
        ``F32``, or what llama.cpp quantises to: ``F16``, ``Q8_0``, ``Q4_K_M``, ... (`models.FILE_TYPES`, `MIXED`).
    seed
        Each tensor's values depend on it and on the tensor's name only.
    optional
        Pattern of optional tensors to keep, beside the architecture's own: ``attn_q.bias``, ``rope_freqs.*``.
    **shape
        Fields of :class:`Shape` that differ from the architecture's.
    """
    usual = SHAPES.get(arch, Shape())
    keys = {**usual.keys, **shape.pop("keys", {})}
    whole = {name: getattr(usual, name) for name in Shape.__slots__} | shape | {"keys": keys}
    out = folder / f"{arch}-{file_type}.gguf"
    plain = out if file_type == "F32" else out.with_suffix(".plain")
    _write(plain, arch, Shape(**whole), seed, (OPTIONAL.get(arch, ""), optional))
    if plain != out:
        quantised(plain, (MIXED | FILE_TYPES)[file_type], out, pure=file_type not in MIXED)
        plain.unlink()
    return out


def _write(path: Path, arch: str, shape: Shape, seed: int, optional: Sequence[str]) -> None:
    """Let llama.cpp make the model of a metadata context, and ggml write both, without what real files lack."""
    lib, llama = _library(), ggml.bindings()
    metadata = lib.gguf_init_empty()
    made: dict[str, int] = {}

    def fill(address: int, _user: object) -> None:
        name = lib.ggml_get_name(address).decode()
        made[name] = address
        x = values(name, tuple(ggml.Tensor.from_address(address).ne)[::-1], shape, seed)
        lib.ggml_backend_tensor_set(address, x.ctypes.data, 0, x.nbytes)

    for key, value in _metadata(arch, shape).items():
        _put(metadata, key, value)
    params = llama.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False
    lib.llama_model_init_from_user.argtypes = [ctypes.c_void_p, _SET_TENSOR, ctypes.c_void_p, type(params)]
    with chatter(None) as said:
        model = lib.llama_model_init_from_user(metadata, _SET_TENSOR(fill), None, params)
        assert model, f"{arch}: llama.cpp makes no such model: {said[-3:]}"
        for name, address in made.items():
            asked_for = any(re.fullmatch(rf"(blk\.\d+\.)?({pattern})", name) for pattern in optional)
            if asked_for or not (ABSENT.fullmatch(name) or (shape.tied and name == "output.weight")):
                lib.gguf_add_tensor(metadata, address)
        assert lib.gguf_write_to_file(metadata, os.fsencode(path), False)
        llama.llama_model_free(model)
    lib.gguf_free(metadata)


def values(name: str, shape: tuple[int, ...], model: Shape, seed: int) -> Array:
    """Draw a tensor such that activations stay of the order of 1; `shape` is [..., out, in]."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x = rng.standard_normal(shape, np.float32)
    if name.endswith(("rope_freqs.weight", "scale")):
        return np.abs(x) + 1
    if name.endswith(".bias") or "sinks" in name:
        return x * np.float32(0.3)
    if "norm" in name:
        return 1 + x * np.float32(0.1)
    if name == "token_embd.weight":  # tied, half-way between a stream and logits of order 1
        return x * np.float32(model.n_embd**-0.25 if model.tied else 1)
    branch = any(part in name for part in BRANCHES)  # smaller, so that the residual stream hardly grows
    return x * np.float32((0.5 if branch else 1.0) / np.sqrt(shape[-1]))


def _metadata(arch: str, s: Shape) -> dict[str, Any]:
    pieces, scores, kinds = vocabulary(s.n_vocab)
    wide = {"attention.key_length": s.head_dim, "attention.value_length": s.head_dim}
    own = {
        "block_count": s.n_layer,
        "context_length": s.n_ctx,
        "embedding_length": s.n_embd,
        "feed_forward_length": s.n_ff,
        "attention.head_count": s.n_head,
        "attention.head_count_kv": s.n_head_kv,
        "attention.layer_norm_rms_epsilon": s.eps,
        "rope.freq_base": s.rope_base,
        **({} if s.n_head * s.head_dim == s.n_embd else wide),  # left out where they go without saying
        **s.keys,
    }
    return {
        "general.architecture": arch,
        **{f"{arch}.{key}": value for key, value in own.items() if value is not None},
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _put(metadata: int, key: str, value: Any) -> None:
    """Set one key of a gguf context (ggml's gguf.h)."""
    lib, name = _library(), key.encode()
    match value:
        case bool():
            lib.gguf_set_val_bool(metadata, name, value)
        case int():
            lib.gguf_set_val_u32(metadata, name, value)
        case float():
            lib.gguf_set_val_f32(metadata, name, value)
        case str():
            lib.gguf_set_val_str(metadata, name, value.encode())
        case np.ndarray():
            kinds = {np.dtype(np.uint32): 4, np.dtype(np.int32): 5, np.dtype(np.float32): 6, np.dtype(np.uint64): 10}
            kind = kinds[value.dtype]
            lib.gguf_set_arr_data(metadata, name, kind, value.ctypes.data, len(value))
        case _:
            lib.gguf_set_arr_str(metadata, name, (ctypes.c_char_p * len(value))(*map(str.encode, value)), len(value))


@cache
def _library() -> ctypes.CDLL:
    """llama.cpp's library, and through it ggml's, with what makes models declared."""
    lib = ctypes.CDLL(ggml.library()._name)
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    for name, result, arguments in (
        ("gguf_init_empty", pointer, []),
        ("gguf_free", None, [pointer]),
        ("gguf_set_val_bool", None, [pointer, text, ctypes.c_bool]),
        ("gguf_set_val_u32", None, [pointer, text, ctypes.c_uint32]),
        ("gguf_set_val_f32", None, [pointer, text, ctypes.c_float]),
        ("gguf_set_val_str", None, [pointer, text, text]),
        ("gguf_set_arr_data", None, [pointer, text, ctypes.c_int, pointer, size]),
        ("gguf_set_arr_str", None, [pointer, text, ctypes.POINTER(text), size]),
        ("gguf_add_tensor", None, [pointer, pointer]),
        ("gguf_write_to_file", ctypes.c_bool, [pointer, text, ctypes.c_bool]),
        ("ggml_get_name", text, [pointer]),
        ("ggml_backend_tensor_set", None, [pointer, pointer, size, size]),
        ("llama_model_init_from_user", pointer, None),
    ):
        function = getattr(lib, name)
        function.restype = result
        if arguments is not None:
            function.argtypes = arguments
    return lib
