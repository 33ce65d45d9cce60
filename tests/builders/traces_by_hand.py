"""Small traces, written by the trace writer or by hand: their numbers, their files' bytes, and their manifests."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from firstdiff.dumps import Step, TraceWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

PROMPT = Step((1, 29896, 13), (0, 1, 2))
ENGINE = {"name": "rustorch", "version": "0.6.27", "backend": "metal"}
MODEL = {"file": "tiny.gguf", "sha256": "00"}


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype)


def prefill() -> dict[str, np.ndarray]:
    return {
        "embd": numbers(3, 4),
        "attn_norm-0": numbers(3, 4, dtype=np.float16),
        "Kcur_rope-0": numbers(3, 1, 2),
        "result_norm": numbers(3, 4, dtype=np.float64),
    }


def decode() -> dict[str, np.ndarray]:
    return {key: values[:1] for key, values in prefill().items()}


def record(path: Path, *, steps: int = 1) -> Path:
    with TraceWriter(path, engine=ENGINE, model=MODEL) as writer:
        writer.step(PROMPT, prefill())
        for i in range(1, steps):
            writer.step(Step((40 + i,), (2 + i,)), decode())
    return path


def raw_file(
    path: Path, tensors: Mapping[str, tuple[str, list[int], bytes]], *, metadata: dict[str, str] | None = None
) -> Path:
    """Write a safetensors file by hand, in the order given: name -> (dtype, shape, bytes)."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return raw_header(path, json.dumps(header).encode(), data)


def raw_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def dump_by_hand(folder: Path, *, rows: tuple[int, ...] = (3,)) -> Path:
    """A foreign dump with no manifest: one file a step, `rows` tokens each."""
    for i, n in enumerate(rows):
        raw_file(folder / f"step-{i:03d}.safetensors", {"embd": ("F32", [n, 2], bytes(8 * n))})
    return folder


def manifest(folder: Path, **parts: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trace.json").write_text(json.dumps(parts))
    return folder
