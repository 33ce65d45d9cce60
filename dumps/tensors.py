"""Tensors of a trace, in a file or in memory, widened to float32 or float64 when read.

What finds them in files is in `firstdiff.dumps.formats`, one module a format.
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

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Buffer = bytes | bytearray | mmap.mmap
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
class Form:
    """What a run of bytes stands for. Made by `form_of`, which checks it.

    Parameters
    ----------
    dtype
        The stored dtype, a key of `RAW`.
    shape
        Row-major, as numpy has it.
    fortran
        The first axis, not the last, is contiguous.
    big_endian
        The most significant byte comes first.
    """

    dtype: str
    shape: tuple[int, ...]
    fortran: bool = False
    big_endian: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * RAW[self.dtype].itemsize

    def values(self, raw: Buffer, begin: int = 0) -> Real:
        """Return the values of the bytes from `begin` on, read-only; not copied where they need not be."""
        kind = RAW[self.dtype].newbyteorder(">" if self.big_endian else "<")
        if not self.size:  # numpy makes no array of an empty buffer
            return widened(np.zeros(self.shape, kind), self.dtype)
        flat = np.frombuffer(raw, kind, math.prod(self.shape), begin)
        array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        return widened(np.ascontiguousarray(array) if self.fortran else array, self.dtype)


def form_of(dtype: str, shape: object, where: str, *, fortran: bool = False, big_endian: bool = False) -> Form:
    """Check a shape that a file states, and return the form; `where` begins the error message."""
    if not is_shape(shape):
        raise TraceError(f"{where} has shape {shown(shape)}: it must be up to {MAX_RANK} whole numbers")
    if math.prod(filter(None, shape)) >= 2**56:  # more than any file, and numpy overflows even where a 0 is in it
        raise TraceError(f"{where} has shape {shown(shape)}, which no file can hold")
    return Form(dtype, tuple(shape), fortran, big_endian)


def is_shape(value: object) -> TypeGuard[Sequence[int]]:
    """Whether a value from a file is a list of so many sides that numpy takes them."""
    if not isinstance(value, list | tuple) or len(value) > MAX_RANK:
        return False
    return all(type(side) is int and 0 <= side < 2**63 for side in value)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, its first byte at `begin` from the start of the file."""

    file: Source
    form: Form
    begin: int

    @property
    def dtype(self) -> str:
        """The dtype it was recorded in."""
        return self.form.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The recorded shape."""
        return self.form.shape

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.begin + self.form.size

    def read(self) -> Real:
        """Return the values, read-only; float32 and float64 straight from a mapped file.

        Raises
        ------
        TraceError
            If the file is gone or shorter than it was when the trace was opened.
        """
        if self.begin == self.end:
            return self.form.values(b"")
        return self.form.values(*self.file.bytes_at(self.begin, self.end))


class Source(Protocol):
    """A file that tensors lie in."""

    @property
    def path(self) -> Path:
        """Where it is."""

    def bytes_at(self, begin: int, end: int) -> tuple[Buffer, int]:
        """Return bytes that hold those asked for, and where in them these begin."""


@dataclass(frozen=True, slots=True)
class LoneFile:
    """A file of one tensor, read when that is asked for.

    A map would keep a descriptor open as long as the values are in use, one a tensor: a step has more of them than
    a process may have descriptors.
    """

    path: Path

    def bytes_at(self, begin: int, end: int) -> tuple[bytes, int]:
        """Return the bytes asked for."""
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                raw = file.read(end - begin)
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be read any more: {error.strerror or error}") from None
        if len(raw) < end - begin:
            raise TraceError(
                f"{self.path}: held {end:,} bytes when it was opened and holds {begin + len(raw):,} now: "
                "open the trace again once nothing writes it"
            )
        return raw, 0


class MappedFile:
    """A file that is mapped while any array of it is in use: one descriptor a file, however many arrays."""

    __slots__ = ("_map", "path", "size")

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._map: weakref.ref[mmap.mmap] | None = None

    def bytes_at(self, begin: int, end: int) -> tuple[mmap.mmap, int]:  # noqa: ARG002 - all of them are there
        """Return the whole file's bytes, and `begin`."""
        return self.mapped(), begin

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


def size_of(path: Path) -> int:
    """Return the size of a regular file."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"{path}: cannot be read: {why}") from None
    if not stat.S_ISREG(status.st_mode):
        raise TraceError(f"{path}: is not a regular file")
    return status.st_size


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
