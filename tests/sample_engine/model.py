"""A llama of float32 weights, read from a GGUF file."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = {4: "<I", 5: "<i", 6: "<f"}  # uint32, int32, float32


@dataclass
class Model:
    numbers: dict[str, Any]
    weights: dict[str, np.ndarray]

    def number(self, name: str) -> Any:
        return self.numbers[f"llama.{name}"]


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        size = self.take("<Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == 8:
            return self.text()
        if kind == 9:
            inside, count = self.take("<I"), self.take("<Q")
            return [self.value(inside) for _ in range(count)]
        return self.take(FORMATS[kind])


def load(path: str) -> Model:
    reader = Reader(Path(path).read_bytes())
    assert reader.take("<I") == 0x46554747  # GGUF
    assert reader.take("<I") == 3
    tensors, keys = reader.take("<Q"), reader.take("<Q")
    numbers = {reader.text(): reader.value(reader.take("<I")) for _ in range(keys)}
    infos = []
    for _ in range(tensors):
        name = reader.text()
        shape = [reader.take("<Q") for _ in range(reader.take("<I"))][::-1]
        assert reader.take("<I") == 0  # float32
        infos.append((name, shape, reader.take("<Q")))
    start = -(-reader.at // 32) * 32
    return Model(
        numbers,
        {
            name: np.frombuffer(reader.data, np.float32, int(np.prod(shape)), start + offset).reshape(shape)
            for name, shape, offset in infos
        },
    )
