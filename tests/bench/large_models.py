"""Models as large as those that people run, of random blocks: a dense one of 8 billion parameters, and experts.

They are written block by block, in a few seconds a gigabyte, and say nothing: what counts is their shape.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.model.gguf_writing import ALIGNMENT, encoded_string, encoded_value
from firstdiff.model.quants import BY_NAME
from firstdiff.model.synthetic import Llama, llama_metadata, tokenizer

Tensor = tuple[str, str, tuple[int, ...]]
"""Its name, its type, and its shape, row-major."""

EIGHT_BILLION = Llama(
    n_layer=32, n_embd=4096, n_head=32, n_head_kv=8, head_dim=128, n_ff=14336, n_vocab=128256, n_ctx=8192,
    rope_base=500000.0,
)  # fmt: skip
"""The shape of Llama 3 8B."""

EXPERTS = {
    "layers": 4, "n_embd": 2048, "heads": 32, "kv_heads": 4, "head_dim": 128, "experts": 128, "used": 8, "n_ff": 768,
    "n_vocab": 151936,
}  # fmt: skip
"""The shape of Qwen3 30B A3B, which has 48 layers; few of them are like all."""

SPREAD = 255.6
"""The standard deviation of a number of a random Q4_K block, in units of the block's scale."""

AT_ONCE = 1 << 16  # blocks


def eight_billion(folder: Path, *, layers: int = EIGHT_BILLION.n_layer) -> Path:
    """Write the dense model in Q4_K: 4.5 GB with all layers."""
    s = EIGHT_BILLION
    q, kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    tensors: list[Tensor] = [("token_embd.weight", "Q4_K", (s.n_vocab, s.n_embd))]
    for i in range(layers):
        tensors += [
            (f"blk.{i}.attn_norm.weight", "F32", (s.n_embd,)),
            (f"blk.{i}.attn_q.weight", "Q4_K", (q, s.n_embd)),
            (f"blk.{i}.attn_k.weight", "Q4_K", (kv, s.n_embd)),
            (f"blk.{i}.attn_v.weight", "Q4_K", (kv, s.n_embd)),
            (f"blk.{i}.attn_output.weight", "Q4_K", (s.n_embd, q)),
            (f"blk.{i}.ffn_norm.weight", "F32", (s.n_embd,)),
            (f"blk.{i}.ffn_gate.weight", "Q4_K", (s.n_ff, s.n_embd)),
            (f"blk.{i}.ffn_up.weight", "Q4_K", (s.n_ff, s.n_embd)),
            (f"blk.{i}.ffn_down.weight", "Q4_K", (s.n_embd, s.n_ff)),
        ]
    tensors += [("output_norm.weight", "F32", (s.n_embd,)), ("output.weight", "Q4_K", (s.n_vocab, s.n_embd))]
    metadata = llama_metadata(s) | {"llama.block_count": np.uint32(layers)}
    return written(folder / f"8b-shaped-{layers}.Q4_K.gguf", metadata, tensors)


def experts(folder: Path) -> Path:
    """Write the mixture of experts in Q4_K: 1.8 GB."""
    s = EXPERTS
    q, kv = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
    tensors: list[Tensor] = [("token_embd.weight", "Q4_K", (s["n_vocab"], s["n_embd"]))]
    for i in range(s["layers"]):
        tensors += [
            (f"blk.{i}.attn_norm.weight", "F32", (s["n_embd"],)),
            (f"blk.{i}.attn_q.weight", "Q4_K", (q, s["n_embd"])),
            (f"blk.{i}.attn_k.weight", "Q4_K", (kv, s["n_embd"])),
            (f"blk.{i}.attn_v.weight", "Q4_K", (kv, s["n_embd"])),
            (f"blk.{i}.attn_output.weight", "Q4_K", (s["n_embd"], q)),
            (f"blk.{i}.attn_q_norm.weight", "F32", (s["head_dim"],)),
            (f"blk.{i}.attn_k_norm.weight", "F32", (s["head_dim"],)),
            (f"blk.{i}.ffn_norm.weight", "F32", (s["n_embd"],)),
            (f"blk.{i}.ffn_gate_inp.weight", "F32", (s["experts"], s["n_embd"])),
            (f"blk.{i}.ffn_gate_exps.weight", "Q4_K", (s["experts"], s["n_ff"], s["n_embd"])),
            (f"blk.{i}.ffn_up_exps.weight", "Q4_K", (s["experts"], s["n_ff"], s["n_embd"])),
            (f"blk.{i}.ffn_down_exps.weight", "Q4_K", (s["experts"], s["n_embd"], s["n_ff"])),
        ]
    tensors += [("output_norm.weight", "F32", (s["n_embd"],)), ("output.weight", "Q4_K", (s["n_vocab"], s["n_embd"]))]
    return written(folder / "30b-a3b-shaped-4.Q4_K.gguf", _experts_metadata(), tensors)


def _experts_metadata() -> dict[str, Any]:
    s = EXPERTS
    keys = {
        "block_count": s["layers"], "context_length": 4096, "embedding_length": s["n_embd"],
        "feed_forward_length": s["used"] * s["n_ff"],
        "attention.head_count": s["heads"], "attention.head_count_kv": s["kv_heads"],
        "attention.key_length": s["head_dim"], "attention.value_length": s["head_dim"], "expert_count": s["experts"],
        "expert_used_count": s["used"], "expert_feed_forward_length": s["n_ff"],
    }  # fmt: skip
    return {
        "general.architecture": "qwen3moe",
        "general.name": "random experts",
        "general.alignment": np.uint32(ALIGNMENT),
        **{f"qwen3moe.{key}": np.uint32(value) for key, value in keys.items()},
        "qwen3moe.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3moe.rope.freq_base": 1000000.0,
        **tokenizer(s["n_vocab"]),
    }


def written(path: Path, metadata: dict[str, Any], tensors: list[Tensor]) -> Path:
    """Write a file of random blocks, whose products have results of the size of their inputs."""
    rng, infos, offset = np.random.default_rng(0), b"", 0
    for name, kind, shape in tensors:
        ne = shape[::-1]
        infos += encoded_string(name) + struct.pack(f"<I{len(ne)}Q", len(ne), *ne)
        infos += struct.pack("<IQ", BY_NAME[kind].id, offset)
        offset += _padded(_size(kind, shape))
    keys = b"".join(encoded_string(k) + encoded_value(v) for k, v in metadata.items())
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)) + keys + infos
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for name, kind, shape in tensors:
            for part in _drawn(rng, name, kind, shape):
                file.write(part.data)
            size = _size(kind, shape)
            file.write(bytes(_padded(size) - size))
    return path


def _size(kind: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) // BY_NAME[kind].block * BY_NAME[kind].nbytes


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _drawn(rng: np.random.Generator, name: str, kind: str, shape: tuple[int, ...]) -> Iterator[npt.NDArray[Any]]:
    if kind == "F32":
        centre, spread = (1.0, 0.1) if len(shape) == 1 else (0.0, shape[-1] ** -0.5)
        yield (centre + spread * rng.standard_normal(shape, np.float32)).astype(np.float32)
        return
    gain = shape[-1] ** 0.5 if name.startswith("token_embd") else 0.5 if "output.w" in name or "down" in name else 1.0
    d = gain * shape[-1] ** -0.5 / SPREAD
    scales = np.array([d, 7.5 * d], np.float16).view(np.uint8)  # codes are 7.5 on average
    left = _size(kind, shape) // BY_NAME[kind].nbytes
    while left:
        count = min(left, AT_ONCE)
        blocks = np.frombuffer(rng.bytes(count * BY_NAME[kind].nbytes), np.uint8).reshape(count, -1).copy()
        blocks[:, :4] = scales
        yield blocks
        left -= count


if __name__ == "__main__":
    sys.stdout.write(f"{eight_billion(Path(sys.argv[1]))}\n{experts(Path(sys.argv[1]))}\n")
