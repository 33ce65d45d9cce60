"""Dumps in formats of others, made file by file: .npy as it should be or not, texts, and what a manifest lists."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstdiff.dumps import Site, Trace, TraceError, open_trace

Q = Site(0, 3, "Qcur")
RNG = np.random.default_rng(7)


def values(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def npy(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=True)
    return path


def npy_bytes(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + version + length + header.encode("latin-1") + data


def text(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def listed(folder: Path, *entries: dict[str, Any], name: str = "trace.json", **parts: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"tensors": list(entries), **parts}))
    return folder


def opened(path: Path, *, tokens: int = 2, **options: Any) -> Trace:
    return open_trace(path, tokens=list(range(1, 1 + tokens)), **options)


def refused(path: Path, why: str) -> None:
    with pytest.raises(TraceError, match=why) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
