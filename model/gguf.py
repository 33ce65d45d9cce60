"""GGUF model files: metadata, the table of tensors, and their bytes in place.

Weights are mapped, not read: opening a file costs the same whatever their size. Nothing in a file is
believed before it is checked, so that a damaged file ends in a `ModelError` and in nothing else.

Source: docs/gguf.md of the ggml project, and ``gguf_init_from_file`` in ggml/src/gguf.cpp.
"""

from __future__ import annotations

import difflib
import mmap
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from firstdiff.model.cursor import Cursor
from firstdiff.model.errors import ModelError, quoted
from firstdiff.model.metadata import LEAST_KEY, read_metadata
from firstdiff.model.tensor_table import LEAST_ENTRY, TensorInfo, read_tensor_table

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = ["GGUF", "TensorInfo", "open_gguf"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_STRANGERS = {  # how other files begin that come in a model's place
    b"version https://git-lfs": "a Git LFS pointer, run `git lfs pull` to fetch the file it stands for",
    b"PK\x03\x04": "a zip archive, such as a PyTorch checkpoint: convert it with convert_hf_to_gguf.py",
    b"<": "probably a web page that came in the file's place: fetch the file again",
    b"lmgg": "a GGML file from before GGUF: fetch the model as GGUF",
    b"tjgg": "a GGML file from before GGUF: fetch the model as GGUF",
}


@dataclass(frozen=True, slots=True)
class GGUF:
    """An open model, of one file or of several parts. Made by `open_gguf`.

    Attributes
    ----------
    path
        The file; of a split model, its first part.
    version
        GGUF version, 2 or 3.
    byte_order
        Always ``"little"``: big-endian files are refused.
    alignment
        Alignment of tensor data in bytes.
    metadata
        Values by key, decoded when looked up. Of a split model, the first part's.
    tensors
        All tensors by name, in the order of the files.
    mapped
        The bytes of every file of the model, in order.
    """

    path: Path
    version: int
    byte_order: str
    alignment: int
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    mapped: dict[Path, npt.NDArray[np.uint8]] = field(repr=False)

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the model, in order."""
        return tuple(self.mapped)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a tensor's bytes as stored: read-only, 1-D, a view of the mapped file.

        Raises
        ------
        ModelError
            If the model has no tensor of that name.
        """
        info = self.tensors.get(name)
        if info is None:
            near = difflib.get_close_matches(name, self.tensors, n=1)
            hint = f"the nearest name is {quoted(near[0])}" if near else "check the model's architecture"
            raise ModelError(f"{self.path}: has no tensor {quoted(name)} among its {len(self.tensors):,}: {hint}")
        return self.mapped[info.path][info.offset : info.offset + info.nbytes]


def architecture_of(path: str | os.PathLike[str]) -> str | None:
    """The architecture that a file names; None where it names none.

    Raises
    ------
    ModelError
        For a file that cannot be read.
    """
    name = open_gguf(path).metadata.get("general.architecture")
    return name if isinstance(name, str) else None


def open_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Open a GGUF model. Of a split model, any part opens the whole.

    Parameters
    ----------
    path
        The file, or any one of ``name-00001-of-00003.gguf`` and its siblings.

    Raises
    ------
    ModelError
        If a file is missing, is no GGUF of version 2 or 3, is damaged, or is no part of this model.
    """
    opened = _open_file(Path(path))
    count = _part_of(opened)[1]
    if count <= 1:
        return opened
    parts = []
    for number, sibling in enumerate(_siblings(opened, count)):
        part = opened if sibling == opened.path else _open_sibling(sibling, number, count)
        if (stated := _part_of(part)) != (number, count):
            raise ModelError(
                f"{sibling}: says it is part {stated[0] + 1:,} of {stated[1]:,}, where its name says "
                f"{number + 1:,} of {count:,}: it was renamed, or belongs to another model"
            )
        parts.append(part)
    return _join(parts)


def _join(parts: list[GGUF]) -> GGUF:
    """Make one model of its parts, the first part's metadata speaking for all."""
    first = parts[0]
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        if twice := next((name for name in part.tensors if name in tensors), None):
            raise ModelError(
                f"{part.path}: tensor {quoted(twice)} is in {tensors[twice].path.name} too: "
                f"the parts belong to different models"
            )
        tensors |= part.tensors
    total = _whole(first.path, first.metadata, "split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ModelError(
            f"{first.path}: says the model has {total:,} tensors, its {len(parts)} parts hold "
            f"{len(tensors):,}: the parts belong to different models"
        )
    return GGUF(
        first.path,
        first.version,
        first.byte_order,
        first.alignment,
        first.metadata,
        tensors,
        {part.path: part.mapped[part.path] for part in parts},
    )


def _part_of(model: GGUF) -> tuple[int, int]:
    """Return which part a file is, from 0, and of how many."""
    number = _whole(model.path, model.metadata, "split.no", 0)
    return number, _whole(model.path, model.metadata, "split.count", 1)


def _siblings(part: GGUF, count: int) -> list[Path]:
    """Return the paths of all parts of a split model, from the path of one."""
    name = _PART.fullmatch(part.path.name)
    if not name or int(name["count"]) != count:
        raise ModelError(
            f"{part.path}: is one of {count:,} parts, but its name does not end in "
            f"-0000n-of-{count:05}.gguf, so the others cannot be found: give the parts back their names"
        )
    return [part.path.with_name(f"{name['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]


def _open_sibling(path: Path, number: int, count: int) -> GGUF:
    if not path.exists():
        raise ModelError(f"{path}: part {number + 1:,} of {count:,} is missing: fetch it into the same folder")
    return _open_file(path)


def _whole(path: Path, metadata: Mapping[str, Any], key: str, default: int) -> int:
    """Return a metadata value that must be a whole number."""
    value = metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(
            f"{path}: metadata {key} is a {type(value).__name__}, where GGUF wants a whole number: "
            f"the file is damaged, convert it again"
        )
    return value


def _open_file(path: Path) -> GGUF:
    """Open one file, whole model or part."""
    cursor = Cursor(path, _map(path))
    version = _read_version(cursor)
    tensor_count = cursor.count(LEAST_ENTRY, "tensors")
    key_count = cursor.count(LEAST_KEY, "metadata keys")
    metadata = read_metadata(cursor, key_count)
    alignment = _whole(path, metadata, "general.alignment", _DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment.bit_count() != 1:
        raise ModelError(
            f"{path}: general.alignment is {alignment:,}, where GGUF wants a power of two: "
            f"the file is damaged, convert it again"
        )
    tensors = read_tensor_table(cursor, tensor_count, alignment)
    mapped = {path: np.frombuffer(cursor.data, np.uint8)}
    return GGUF(path, version, "little", alignment, metadata, tensors, mapped)


def _map(path: Path) -> mmap.mmap:
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file: check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or a file emptied just now
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{path}: cannot be read ({reason}): check the path and its permissions") from None
    if stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path}: is empty (0 bytes): the download never began, fetch it again")
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
    raise ModelError(f"{path}: is {kind}, where a GGUF file is wanted: give the path of the file itself")


def _read_version(cursor: Cursor) -> int:
    """Read the magic and the version, and refuse what is no little-endian GGUF of a known version."""
    head = cursor.data[:32]
    if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
        looks = next((looks for start, looks in _STRANGERS.items() if head.startswith(start)), None)
        raise ModelError(
            f"{cursor.path}: is no GGUF file, it begins with {head[:4]!r} in place of {_MAGIC!r}: "
            f"{'it is ' + looks if looks else 'check the path'}"
        )
    cursor.skip(len(_MAGIC), "the magic")
    version = cursor.u32("the version")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped < version and version % (1 << 16) == 0:
        raise ModelError(
            f"{cursor.path}: is big-endian (version {swapped} is stored as {version:#010x}), this reader "
            f"wants little-endian: convert it with gguf_convert_endian.py of llama.cpp"
        )
    if version not in _VERSIONS:
        too_old = version < min(_VERSIONS)
        advice = "fetch a newer file or convert it again" if too_old else "take a newer firstdiff"
        raise ModelError(f"{cursor.path}: is GGUF version {version:,}, this reader knows 2 and 3: {advice}")
    return version
