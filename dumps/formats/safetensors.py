"""safetensors files: every tensor of a step, or a part of them.

The format is that of https://huggingface.co/docs/safetensors: an unsigned 64-bit header length, a JSON header with
each tensor's dtype, shape and byte range, then the bytes. The header is read here and not by the library because
numpy knows neither bfloat16 nor the 8-bit floats, and because its every number is checked against the file.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeGuard

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.site import check_key
from firstdiff.dumps.strict_json import MAX_JSON, parse_object
from firstdiff.dumps.tensors import MAX_RANK, RAW, Form, MappedFile, Stored, is_shape, size_of

if TYPE_CHECKING:
    from pathlib import Path


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
    size = size_of(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 + length:
                raise TraceError(
                    f"{path}: a header of {length:,} bytes cannot be in a file of {size:,}: "
                    "the file is cut short, or is no safetensors file"
                )
            if length > MAX_JSON:
                raise TraceError(f"{path}: its header has {length:,} bytes, and at most {MAX_JSON:,} are read")
            raw = file.read(length)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(raw) < length:
        raise TraceError(f"{path}: is cut short within its header: {len(raw):,} of {length:,} bytes")
    return raw, size


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
    if not is_shape(shape):
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
    return Stored(file, Form(stored, tuple(shape)), data + begin)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
