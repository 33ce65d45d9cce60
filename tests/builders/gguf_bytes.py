"""GGUF files byte by byte, so that any part of one can be wrong, and whole ones by the `gguf` package."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import GGUF, open_gguf

U32, U64, STRING, ARRAY = 4, 10, 8, 9
F32, Q8_0 = 0, 8


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def entry(
    name: str | bytes = "t",
    ne: tuple[int, ...] = (32,),
    kind: int = F32,
    offset: int = 0,
    dims: int | None = None,
) -> bytes:
    number = len(ne) if dims is None else dims
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", number, *ne, kind, offset)


def built(
    pairs: Sequence[bytes] = (),
    entries: Sequence[bytes] = (),
    data: bytes = bytes(128),
    *,
    version: int = 3,
    tensors: int | None = None,
    keys: int | None = None,
    align: int = 32,
) -> bytes:
    head = struct.pack(
        "<4sIQQ",
        b"GGUF",
        version,
        len(entries) if tensors is None else tensors,
        len(pairs) if keys is None else keys,
    )
    table = head + b"".join(pairs) + b"".join(entries)
    return table + bytes(-len(table) % align) + data


def opened(tmp_path: Path, data: bytes) -> GGUF:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return open_gguf(path)


def refusal(tmp_path: Path, data: bytes) -> str:
    """Return what a file of these bytes is refused with, without its path."""
    with pytest.raises(ModelError) as caught:
        opened(tmp_path, data)
    start = f"{tmp_path / 'model.gguf'}: "
    message = str(caught.value)
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)


def written(path: Path, fill: Callable[[GGUFWriter], None], **options: Any) -> Path:
    """Write a file with the `gguf` package; `fill` adds to the writer."""
    writer = GGUFWriter(path, "llama", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(writer: GGUFWriter) -> None:
    writer.add_tensor("plain", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    writer.add_tensor("half", np.arange(7, dtype=np.float16))
    writer.add_tensor("blocks", np.arange(5 * 68, dtype=np.uint8).reshape(5, 68), raw_dtype=GGMLQuantizationType.Q8_0)
