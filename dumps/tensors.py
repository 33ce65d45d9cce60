"""Tensors of a trace, in a safetensors file or in memory, widened to float32 or float64 when read.

The file format is that of https://huggingface.co/docs/safetensors: an unsigned 64-bit header length, a JSON
header with each tensor's dtype, shape and byte range, then the bytes. The header is read here and not by the
library because numpy knows neither bfloat16 nor the 8-bit floats, and because its every number is checked
against the file.
"""

from __future__ import annotations

import functools
import math
import mmap
import stat
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.site import check_key
from firstdiff.dumps.strict_json import MAX_JSON, parse_object

if TYPE_CHECKING:
    from pathlib import Path

Real = NDArray[np.float32] | NDArray[np.float64]

MAX_RANK = 8  # safetensors sets no limit; numpy stops at 64, and no engine needs more than five

# The raw numpy type of each stored dtype, little-endian as the format has it.
RAW: dict[str, np.dtype[Any]] = {
    name: np.dtype(raw)
    for name, raw in {
        "f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2", "f8_e4m3": "u1", "f8_e5m2": "u1",
        "i64": "<i8", "i32": "<i4", "i16": "<i2", "i8": "i1",
        "u64": "<u8", "u32": "<u4", "u16": "<u2", "u8": "u1", "bool": "u1",
    }.items()
}  # fmt: skip
# What float32 cannot hold exactly. 64-bit integers beyond 2**53 round to the nearest float64.
_TO_FLOAT64 = frozenset({"f64", "i64", "i32", "u64", "u32"})


class Tensor(Protocol):
    """One recorded tensor, wherever it is."""

    @property
    def dtype(self) -> str:
        """The dtype it was recorded in, by its safetensors name in lower case: ``f16``, ``f8_e4m3``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The recorded shape, row-major."""

    def read(self) -> Real:
        """Return the values, read-only."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in memory. The array is not copied: leave it alone while the trace is in use."""

    array: NDArray[Any]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape

    def read(self) -> Real:
        """Return the values, read-only."""
        return widened(self.array, self.dtype)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: bytes `begin` to `end`, counted from the start of the file."""

    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self) -> Real:
        """Return the values, read-only; float32 and float64 straight from the mapped file.

        Raises
        ------
        TraceError
            If the file is gone or shorter than it was when the trace was opened.
        """
        raw = RAW[self.dtype]
        if self.begin == self.end:
            return widened(np.zeros(self.shape, raw), self.dtype)
        count = (self.end - self.begin) // raw.itemsize
        flat = np.frombuffer(self.file.mapped(), raw, count, self.begin)
        return widened(flat.reshape(self.shape), self.dtype)


class MappedFile:
    """A file that is mapped while any array of it is in use: one descriptor a file, however many arrays."""

    __slots__ = ("_map", "path", "size")

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._map: weakref.ref[mmap.mmap] | None = None

    def mapped(self) -> mmap.mmap:
        """Return the file's bytes."""
        held = None if self._map is None else self._map()
        if held is None:
            try:
                with self.path.open("rb") as file:
                    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise TraceError(f"{self.path}: cannot be read any more: {error}") from None
            if len(held) < self.size:
                raise TraceError(
                    f"{self.path}: had {self.size:,} bytes when it was opened and has {len(held):,} now: "
                    "open the trace again once nothing writes it"
                )
            self._map = weakref.ref(held)
        return held


def dtype_of(array: NDArray[Any]) -> str:
    """Return the stored name of a recordable array's dtype (``f16``, ``i32``), or raise TraceError."""
    name = "bool" if array.dtype.kind == "b" else f"{array.dtype.kind}{8 * array.dtype.itemsize}"
    if array.ndim > MAX_RANK:
        raise TraceError(f"{array.ndim} dimensions cannot be recorded: reshape it to at most {MAX_RANK}")
    if name not in RAW:
        raise TraceError(f"dtype {array.dtype} cannot be recorded: give one of {', '.join(RAW)}")
    return name


def widened(raw: NDArray[Any], dtype: str) -> Real:
    """Widen raw bits of a stored dtype to float32 or float64, exactly (64-bit integers: to the nearest)."""
    wide: NDArray[Any]
    if dtype == "bf16":  # the upper half of a float32
        wide = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif dtype == "f8_e5m2":  # the upper half of a float16
        wide = (raw.astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    elif dtype == "f8_e4m3":
        wide = _e4m3()[raw]
    elif dtype == "bool":
        wide = (raw != 0).astype(np.float32)
    else:
        native = np.float64 if dtype in _TO_FLOAT64 else np.float32
        wide = raw.astype(native, copy=not raw.flags.aligned)
    wide = np.asarray(wide).view()  # never change the flags of somebody else's array
    wide.flags.writeable = False
    return wide


@functools.cache
def _e4m3() -> NDArray[np.float32]:
    """Return the value of each byte as E4M3: bias 7, no infinities, NaN where all other bits are set.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022, table 1.
    """
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    size[[0x7F, 0xFF]] = np.nan
    signed: NDArray[np.float64] = np.where(code & 128, -size, size)
    return signed.astype(np.float32)


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Read the header of a safetensors file.

    Returns
    -------
    tensors
        By name, in the order of their bytes.
    metadata
        The texts under ``__metadata__``.

    Raises
    ------
    TraceError
        If the file is cut short, or its header is not sound in every number.
    """
    raw, size = _header_bytes(path)
    header = parse_object(raw, f"{path}: its header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise TraceError(f"{path}: __metadata__ must map texts to texts, not {shown(metadata)}")
    file = MappedFile(path, size)
    tensors = {name: _entry(file, 8 + len(raw), name, entry) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    end, before = 0, ""
    for name, tensor in ordered.items():
        if tensor.begin < end:
            raise TraceError(f"{path}: tensors {shown(before)} and {shown(name)} overlap: write the file again")
        end, before = tensor.end, name
    return ordered, metadata


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """Return the header's JSON and the size of the file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TraceError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if status.st_size < 8 + length:
                raise TraceError(
                    f"{path}: a header of {length:,} bytes cannot be in a file of {status.st_size:,}: "
                    "the file is cut short, or is no safetensors file"
                )
            if length > MAX_JSON:
                raise TraceError(f"{path}: its header has {length:,} bytes, and at most {MAX_JSON:,} are read")
            raw = file.read(length)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(raw) < length:
        raise TraceError(f"{path}: is cut short within its header: {len(raw):,} of {length:,} bytes")
    return raw, status.st_size


def _entry(file: MappedFile, data: int, name: str, entry: object) -> Stored:
    """Check one tensor of the header: its name, dtype, shape, and that its bytes are in the file."""
    where = f"{file.path}: tensor {shown(name)}"
    try:
        check_key(name)
    except TraceError as error:
        raise TraceError(f"{file.path}: {error}") from None
    if not isinstance(entry, dict):
        raise TraceError(f"{where} must be described by a JSON object, not {shown(entry)}")
    dtype, shape, offsets = (entry.get(part) for part in ("dtype", "shape", "data_offsets"))
    stored = dtype.lower() if isinstance(dtype, str) and dtype.isupper() else ""
    if stored not in RAW:
        raise TraceError(f"{where} has dtype {shown(dtype)}, which is not read: write one of {', '.join(RAW).upper()}")
    if not _is_counts(shape) or len(shape) > MAX_RANK:
        raise TraceError(f"{where} has shape {shown(shape)}: it must be up to {MAX_RANK} whole numbers")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004 - begin and end
        raise TraceError(f"{where} has data_offsets {shown(offsets)}: they must be a begin and an end")
    begin, end = offsets
    if data + end > file.size:
        raise TraceError(
            f"{where} ends {data + end - file.size:,} bytes past the end of the file (size {file.size:,}): "
            "the file is cut short, so record that step again"
        )
    if end - begin != math.prod(shape) * RAW[stored].itemsize or math.prod(filter(None, shape)) >= 2**56:
        raise TraceError(f"{where} has {end - begin:,} bytes, which shape {shown(shape)} of {dtype} is not")
    return Stored(file, stored, tuple(shape), data + begin, data + end)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
