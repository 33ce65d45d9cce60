"""A trace dumped in the formats of others: .npy, .npz, raw values that a manifest lists, texts, safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from firstdiff.dumps import Site, Trace

Tensors = list[tuple[Site, np.ndarray]]


def held(trace: Trace) -> Tensors:
    return [(site, np.array(trace[site])) for site in trace]


Convert = Callable[[Path, Tensors, Trace], Path]


def manifest(folder: Path, trace: Trace, **more: Any) -> Path:
    """What a foreign dump says: its tokens, and nothing of names, layouts or arithmetic."""
    steps = [{"tokens": list(step.tokens)} for step in trace.steps]
    (folder / "trace.json").write_text(json.dumps({"steps": steps, **more}))
    return folder


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def as_npy(spelling: str, *, saying: bool = True, dtype: str = "<f4") -> Convert:
    """One .npy a tensor, its site spelled some way; `saying` what the tokens are, or leaving it to --tokens."""

    def convert(folder: Path, tensors: Tensors, trace: Trace) -> Path:
        for site, x in tensors:
            name = spelling.format(name=site.key, point=site.point, layer=site.layer, step=site.step)
            if site.layer is None and "{layer}" in spelling:
                name = f"{site.point}@{site.step}"
            np.save(made(folder / f"{name}.npy"), x.astype(dtype))
        return manifest(folder, trace) if saying else folder

    return convert


def as_npz(dtype: str) -> Convert:
    def convert(folder: Path, tensors: Tensors, trace: Trace) -> Path:
        for index in range(len(trace.steps)):
            arrays: dict[str, Any] = {site.key: x.astype(dtype) for site, x in tensors if site.step == index}
            np.savez_compressed(made(folder / f"step-{index:03}.npz"), **arrays)
        return manifest(folder, trace)

    return convert


def bf16(x: np.ndarray) -> np.ndarray:
    """The upper half of each float32: exact for what was rounded to bf16 already."""
    bits = x.astype("<f4").view("<u4")
    return (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) & 0xFFFF).astype("<u2")


def as_raw(dtype: str) -> Convert:
    """All values in one file, one tensor after the other, with a manifest that says where."""

    def convert(folder: Path, tensors: Tensors, trace: Trace) -> Path:
        data, listed = b"", []
        for site, x in tensors:
            raw = bf16(x).tobytes() if dtype == "bf16" else x.astype({"f32": "<f4", "f16": "<f2"}[dtype]).tobytes()
            at = {"step": site.step, "point": site.point} | ({} if site.layer is None else {"layer": site.layer})
            listed.append({"file": "dump.bin", "offset": len(data), "dtype": dtype, "shape": list(x.shape)} | at)
            data += raw
        made(folder / "dump.bin").write_bytes(data)
        return manifest(folder, trace, tensors=listed)

    return convert


def as_texts(folder: Path, tensors: Tensors, trace: Trace) -> Path:
    """Nine digits, of which a float32 comes back."""
    for site, x in tensors:
        lines = [" ".join(f"{v:.9g}" for v in row) for row in x.reshape(x.shape[0], -1)]
        shape = f"# shape: {list(x.shape)}\n" if x.ndim > 2 else ""
        made(folder / f"{site.key}_step_{site.step}.txt").write_text(shape + "\n".join(lines) + "\n")
    return manifest(folder, trace)


def as_safetensors(dtype: str) -> Convert:
    """One file a layer, and one for what is outside the layers."""

    def convert(folder: Path, tensors: Tensors, trace: Trace) -> Path:
        parts: dict[str, dict[str, np.ndarray]] = {}
        for site, x in tensors:
            part = "rest" if site.layer is None else f"layer-{site.layer:02}"
            stored = bf16(x) if dtype == "bf16" else x.astype({"f32": "<f4", "f16": "<f2"}[dtype])
            parts.setdefault(f"step-{site.step:03}.{part}", {})[site.key] = np.ascontiguousarray(stored)
        for name, arrays in parts.items():
            made(folder / f"{name}.safetensors").write_bytes(relabelled(save(arrays)))
        return manifest(folder, trace)

    return convert


def relabelled(raw: bytes) -> bytes:
    """The same file with its 16-bit integers, if any, called what they are; the header's length changes with it."""
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"U16"', b'"BF16"').rstrip()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]
