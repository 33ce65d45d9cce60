"""npz files: several named npy arrays in a zip archive, as ``numpy.savez`` and ``savez_compressed`` write it.

The archive's list of members is read by `zipfile`; each member's place and size is then checked against the file,
and no two may overlap, so that what can be unpacked is bounded by what is there. A stored member is mapped, a
deflated one unpacked when it is asked for. The zip format is that of PKWARE's APPNOTE.TXT.
"""

from __future__ import annotations

import itertools
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firstdiff.dumps.errors import PickleError, TraceError, shown
from firstdiff.dumps.formats.npy import HEAD, read_head
from firstdiff.dumps.tensors import Form, MappedFile, Real, Stored, size_of

if TYPE_CHECKING:
    import mmap
    from pathlib import Path

_LOCAL_HEADER = 30  # bytes before a member's name
# Deflate codes at most 258 bytes in 2 bits (RFC 1951), so no member grows more than this. A tensor of zeros does.
_MOST_GROWTH = 1032
_ENCRYPTED = 1  # bit of a member's flags
_DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, ValueError, OSError, RuntimeError, EOFError, struct.error, IndexError,
    OverflowError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Deflated:
    """A compressed tensor: the bytes `begin` to `end` of the file unpack to `size`, of which the last are values."""

    file: MappedFile
    name: str
    form: Form
    begin: int
    end: int
    size: int
    crc: int

    @property
    def dtype(self) -> str:
        """The dtype it was recorded in."""
        return self.form.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The recorded shape."""
        return self.form.shape

    def read(self) -> Real:
        """Unpack and return the values, read-only; nothing of it is kept.

        Raises
        ------
        TraceError
            If the file has gone, or the bytes do not unpack to what was stated.
        """
        where = f"{self.file.path}: member {shown(self.name)}"
        raw = _unpacked(self.file.mapped(), self.begin, self.end, self.size + 1, where)
        if len(raw) != self.size or zlib.crc32(raw) != self.crc:
            raise TraceError(f"{where} is damaged: it does not unpack to the {self.size:,} bytes that were packed")
        return self.form.values(raw, self.size - self.form.size)


def open_npz(path: Path) -> dict[str, Stored | Deflated]:
    """Find the arrays of a npz file, by member name without ``.npy``, in the order of the archive.

    Raises
    ------
    TraceError
        If it is damaged, encrypted, packed otherwise than numpy does, a pickle, or claims what cannot be in it.
    """
    size = size_of(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _DAMAGE as error:
        why = str(error)[:200]
        raise TraceError(
            f"{path}: this file of format {path.suffix!r} is not readable ({shown(why)}): it is damaged or cut short, "
            "so write it again, with numpy.savez or as .safetensors"
        ) from None
    file = MappedFile(path, size)
    _held = file.mapped()  # as long as members are looked at, so that it is mapped once
    found: dict[str, Stored | Deflated] = {}
    spans: list[tuple[int, int, str]] = []
    for member in members:
        if member.filename.endswith(".pkl"):
            raise PickleError(path, f"holds the pickle {shown(member.filename)}")
        if not member.filename.endswith(".npy"):
            continue
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise TraceError(f"{path}: member {shown(member.filename)} comes twice: save the file again")
        begin = _data_of(file, member)
        spans.append((begin, begin + member.compress_size, member.filename))
        found[name] = _tensor(file, member, begin)
    _check_apart(path, spans)
    return found


def _data_of(file: MappedFile, member: zipfile.ZipInfo) -> int:
    """Check what the archive says of a member, and return where its bytes begin."""
    where = f"{file.path}: member {shown(member.filename)}"
    if member.flag_bits & _ENCRYPTED or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise TraceError(f"{where} is encrypted or packed in another way than numpy's: write it with numpy.savez")
    at = member.header_offset
    if not 0 <= at <= file.size - _LOCAL_HEADER:
        raise TraceError(f"{where} begins outside the file: the archive is damaged")
    local = file.mapped()[at : at + _LOCAL_HEADER]
    name_length, extra_length = struct.unpack_from("<HH", local, 26)
    begin: int = at + _LOCAL_HEADER + name_length + extra_length
    if local[:4] != b"PK\x03\x04" or begin + member.compress_size > file.size:
        raise TraceError(f"{where} is not where the archive says, or is cut short: save the file again")
    most = member.compress_size * (1 if member.compress_type == zipfile.ZIP_STORED else _MOST_GROWTH)
    if member.file_size > most:
        raise TraceError(
            f"{where} claims {member.file_size:,} bytes, and its {member.compress_size:,} cannot hold more than "
            f"{most:,}: the archive is damaged or made to harm"
        )
    return begin


def _tensor(file: MappedFile, member: zipfile.ZipInfo, begin: int) -> Stored | Deflated:
    """Read a member's npy header, unpacking no more than that."""
    where = f"{file.path}: member {shown(member.filename)}"
    end = begin + member.compress_size
    if member.compress_type == zipfile.ZIP_STORED:
        if member.compress_size != member.file_size:
            raise TraceError(f"{where} is stored, and yet {member.compress_size:,} bytes for {member.file_size:,}")
        form, offset = read_head(file.mapped()[begin : min(end, begin + HEAD)], member.file_size, where)
        return Stored(file, form, begin + offset)
    head = _unpacked(file.mapped(), begin, min(end, begin + 2 * HEAD), HEAD, where)
    form, _ = read_head(head, member.file_size, where)
    return Deflated(file, member.filename, form, begin, end, member.file_size, member.CRC)


def _unpacked(raw: mmap.mmap, begin: int, end: int, most: int, where: str) -> bytes:
    """Inflate bytes `begin` to `end`, up to so many; memory grows with what comes out, not with what is claimed."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw[begin:end], most)
    except (zlib.error, MemoryError, OverflowError) as error:
        raise TraceError(
            f"{where} does not unpack ({str(error) or 'not enough memory'}): save the file again"
        ) from None


def _check_apart(path: Path, spans: list[tuple[int, int, str]]) -> None:
    """Refuse members that share bytes: packed once and counted many times, they unpack to any size."""
    spans.sort()
    for (_, end, name), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            raise TraceError(f"{path}: members {shown(name)} and {shown(other)} overlap: made to harm, or damaged")
