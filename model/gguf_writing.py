"""Writing GGUF files: metadata and tensors as they are given, nothing added.

Source of the format: docs/gguf.md of the ggml project.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstdiff.model.quants import BY_NAME, QuantType

ALIGNMENT = 32
"""Bytes to a multiple of which each tensor begins (``GGUF_DEFAULT_ALIGNMENT``), unless the metadata say otherwise."""

_SCALARS = {  # numpy's dtype: number of gguf_metadata_value_type
    np.dtype(np.uint8): 0,
    np.dtype(np.int8): 1,
    np.dtype(np.uint16): 2,
    np.dtype(np.int16): 3,
    np.dtype(np.uint32): 4,
    np.dtype(np.int32): 5,
    np.dtype(np.float32): 6,
    np.dtype(np.bool_): 7,
    np.dtype(np.uint64): 10,
    np.dtype(np.int64): 11,
    np.dtype(np.float64): 12,
}
_STRING, _ARRAY = 8, 9
_PLAIN = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}


class Encoded(bytes):
    """A metadata value with its type, as it stands in a file."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor to be written.

    Parameters
    ----------
    kind, shape
        Its type, and its shape, row-major.
    data
        Its bytes, uint8 [n]; None for zeros, which take no room on disk where the file system knows holes. In every
        type of ggml blocks of zero bytes are zeros.
    """

    kind: QuantType
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8] | None

    @classmethod
    def of(cls, x: npt.NDArray[np.floating]) -> Tensor:
        """A tensor of float32 or float16 numbers."""
        x = np.ascontiguousarray(x)
        return cls(BY_NAME[_PLAIN[x.dtype]], x.shape, x.reshape(-1).view(np.uint8))

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.shape) // self.kind.block * self.kind.nbytes


def write_gguf(path: Path, metadata: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Path:
    """Write a file of GGUF version 3.

    Parameters
    ----------
    path
        The file.
    metadata
        Values by key; see :func:`encoded_value`.
    tensors
        Tensors by name, in the order of the file.

    Raises
    ------
    OSError
        Where the file cannot be written.
    """
    stated = metadata.get("general.alignment", ALIGNMENT)
    alignment = int.from_bytes(stated[4:], "little") if isinstance(stated, Encoded) else int(str(stated))
    infos, offset = b"", 0
    for name, tensor in tensors.items():
        ne = tensor.shape[::-1]
        infos += encoded_string(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, tensor.kind.id, offset)
        offset += _padded(tensor.nbytes, alignment)
    keys = b"".join(encoded_string(key) + encoded_value(value) for key, value in metadata.items())
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)) + keys + infos
    with path.open("wb") as file:
        file.write(head)
        place = _padded(len(head), alignment)
        for tensor in tensors.values():
            if tensor.data is not None:
                file.seek(place)
                file.write(tensor.data.data)
            place += _padded(tensor.nbytes, alignment)
        file.truncate(place)
    return path


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def encoded_string(text: str) -> bytes:
    """Return a string as GGUF stores it: its length in bytes, and the bytes in UTF-8."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def encoded_value(value: object) -> bytes:
    """Return one metadata value behind its type.

    Parameters
    ----------
    value
        A string, a list of strings, a bool, a float (stored as float32), a number or a vector of one of numpy's types,
        or one that is encoded already.

    Raises
    ------
    TypeError
        For a value of another kind: a whole number has no type unless it is one of numpy's.
    """
    if isinstance(value, Encoded):
        return value
    match value:
        case str():
            return struct.pack("<I", _STRING) + encoded_string(value)
        case bool() | float() if not isinstance(value, np.generic):
            return encoded_value(np.bool_(value) if isinstance(value, bool) else np.float32(value))
        case list():
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(encoded_string(v) for v in value)
        case np.ndarray() if value.dtype in _SCALARS and value.ndim == 1:
            return struct.pack("<IIQ", _ARRAY, _SCALARS[value.dtype], len(value)) + value.tobytes()
        case np.generic() if value.dtype in _SCALARS:
            return struct.pack("<I", _SCALARS[value.dtype]) + value.tobytes()
    raise TypeError(f"no GGUF value is made of {type(value).__name__}")
