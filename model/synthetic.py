"""Small synthetic models: a llama of random weights, written as a GGUF file of our own.

The demo runs on one where no real model is installed, and tests make every shape from it. The weights are drawn
so that activations stay of the order of 1 through the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.model.gguf_writing import ALIGNMENT, Tensor, write_gguf

LEAST_VOCABULARY = 320
"""Tokens that a vocabulary has at least: control tokens, bytes, and letters."""

BRANCHES = ("attn_output", "ffn_down")


@dataclass(frozen=True, slots=True)
class Llama:
    """The shape of a synthetic llama; the defaults make a file of 3 MB."""

    n_layer: int = 4
    n_embd: int = 256
    n_head: int = 8
    n_head_kv: int = 4
    head_dim: int = 32
    n_ff: int = 512
    n_vocab: int = 384
    n_ctx: int = 512
    rope_base: float = 10000.0
    rope_scale: float = 1.0
    rope_factors: bool = False
    tied: bool = False
    biases: bool = False
    seed: int = 0
    dtype: type[np.floating] = np.float32


def write_llama(path: Path, shape: Llama) -> Path:
    """Write a random llama model with a small SentencePiece vocabulary of bytes and letters.

    Raises
    ------
    OSError
        Where the file cannot be written.
    """
    return write_gguf(path, llama_metadata(shape), {name: Tensor.of(x) for name, x in llama_tensors(shape)})


def llama_tensors(s: Llama) -> Iterator[tuple[str, npt.NDArray[np.floating]]]:
    """Draw every tensor of a llama of this shape, in the order of the file: its name, and its values [..., out, in]."""
    rng = np.random.default_rng(s.seed)

    def matrix(out: int, n: int, gain: float = 1.0) -> npt.NDArray[np.floating]:
        return (rng.standard_normal((out, n), np.float32) * np.float32(gain / np.sqrt(n))).astype(s.dtype)

    def vector(n: int, centre: float, spread: float) -> npt.NDArray[np.float32]:
        return (centre + spread * rng.standard_normal(n, np.float32)).astype(np.float32)

    yield "token_embd.weight", matrix(s.n_vocab, s.n_embd, np.sqrt(s.n_embd))
    q, kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    for i in range(s.n_layer):
        block = f"blk.{i}."
        yield block + "attn_norm.weight", vector(s.n_embd, 1.0, 0.1)
        for name, out, n in (
            ("attn_q", q, s.n_embd),
            ("attn_k", kv, s.n_embd),
            ("attn_v", kv, s.n_embd),
            ("attn_output", s.n_embd, q),
            ("ffn_gate", s.n_ff, s.n_embd),
            ("ffn_up", s.n_ff, s.n_embd),
            ("ffn_down", s.n_embd, s.n_ff),
        ):
            # what is added to the residual stream is drawn smaller, so that the stream hardly grows
            yield f"{block}{name}.weight", matrix(out, n, 0.5 if name in BRANCHES else 1.0)
            if s.biases:
                yield f"{block}{name}.bias", vector(out, 0.0, 0.3)
        yield block + "ffn_norm.weight", vector(s.n_embd, 1.0, 0.1)
    yield "output_norm.weight", vector(s.n_embd, 1.0, 0.1)
    if not s.tied:
        yield "output.weight", matrix(s.n_vocab, s.n_embd)
    if s.rope_factors:  # llama 3's shape: 1 for high frequencies, 8 for low ones, a ramp between
        yield "rope_freqs.weight", np.clip(np.geomspace(0.25, 32, s.head_dim // 2), 1, 8).astype(np.float32)


def llama_metadata(s: Llama) -> dict[str, Any]:
    """Return the keys of a llama of this shape, with values for :func:`firstdiff.model.gguf_writing.write_gguf`."""
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1 / s.rope_scale}
    return {
        "general.architecture": "llama",
        "general.name": "synthetic llama",
        "general.alignment": np.uint32(ALIGNMENT),
        "llama.block_count": np.uint32(s.n_layer),
        "llama.context_length": np.uint32(s.n_ctx),
        "llama.embedding_length": np.uint32(s.n_embd),
        "llama.feed_forward_length": np.uint32(s.n_ff),
        "llama.attention.head_count": np.uint32(s.n_head),
        "llama.attention.head_count_kv": np.uint32(s.n_head_kv),
        "llama.attention.key_length": np.uint32(s.head_dim),
        "llama.attention.value_length": np.uint32(s.head_dim),
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": np.uint32(s.head_dim),
        "llama.rope.freq_base": s.rope_base,
        **(scaling if s.rope_scale != 1 else {}),
        "llama.vocab_size": np.uint32(s.n_vocab),
        **tokenizer(s.n_vocab),
    }


def tokenizer(size: int) -> dict[str, Any]:
    """Return the keys of a vocabulary of so many tokens."""
    pieces, scores, kinds = vocabulary(size)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
    }


def vocabulary(size: int) -> tuple[list[str], list[float], list[int]]:
    """Return pieces, scores and kinds of `size` tokens, at least `LEAST_VOCABULARY`.

    Kinds are those of llama.cpp: 1 normal, 2 unknown, 3 control, 6 byte.
    """
    pieces, kinds = ["<unk>", "<s>", "</s>"], [2, 3, 3]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    kinds += [6] * 256
    letters = "▁etaoinsrhldcumfpgwybvkxjqz" + "ETAOINSRHLDCUMFPGWYBVKXJQZ" + ".,?!"
    pieces += list(letters)
    pieces += [f"▁w{n}" for n in range(size - len(pieces))]
    kinds += [1] * (size - len(kinds))
    return pieces, [-float(i) for i in range(size)], kinds
