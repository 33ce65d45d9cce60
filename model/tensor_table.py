"""The table of a GGUF file's tensors, each entry checked before it is believed.

Source: docs/gguf.md of the ggml project (``gguf_tensor_info_t``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from firstdiff.model.cursor import past_end
from firstdiff.model.errors import ModelError, quoted
from firstdiff.model.quants import TYPES, QuantType

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from firstdiff.model.cursor import Cursor

LEAST_ENTRY = 32  # bytes: an empty name's length, number of dimensions, one dimension, type, offset
_MAX_DIMS = 4  # GGML_MAX_DIMS


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies, and how it is stored.

    Attributes
    ----------
    name
        The tensor's name, such as ``blk.0.attn_q.weight``.
    type
        Its ggml type.
    shape
        Row-major: ggml's ``ne`` reversed, the row length last.
    path
        The file that holds it.
    offset
        Byte offset from the start of that file.
    nbytes
        Size in bytes.
    """

    name: str
    type: QuantType
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


def read_tensor_table(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    """Read `count` entries; tensor data begin at the next multiple of `alignment` behind them.

    Raises
    ------
    ModelError
        If an entry is damaged, a name comes twice, or a tensor's bytes are misaligned, end past the end
        of the file, or are another tensor's too.
    """
    entries = [_read_entry(cursor, f"tensor {index:,} of {count:,}") for index in range(count)]
    base = -(-cursor.pos // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise ModelError(
                f"{cursor.path}: tensor {quoted(name)} comes twice, at offsets {tensors[name].offset:,} "
                f"and {base + offset:,}: the file is damaged, convert it again"
            )
        nbytes = prod(shape) // kind.block * kind.nbytes
        info = TensorInfo(name, kind, shape, cursor.path, base + offset, nbytes)
        if offset % alignment:
            raise ModelError(
                f"{cursor.path}: tensor {quoted(name)} begins at byte {offset:,} of the data, which is no "
                f"multiple of the alignment {alignment:,}: the file is damaged, fetch it again"
            )
        if info.offset + nbytes > len(cursor.data):
            raise past_end(cursor.path, f"tensor {quoted(name)}", info.offset, nbytes, len(cursor.data))
        tensors[name] = info
    _check_overlap(cursor.path, tensors.values())
    return tensors


def _read_entry(cursor: Cursor, which: str) -> tuple[str, tuple[int, ...], QuantType, int]:
    """Read a tensor's name, shape, type, and byte offset from the start of the data."""
    name = cursor.name(f"the name of {which}")
    what = f"tensor {quoted(name)}"
    dims = cursor.u32(f"the number of dimensions of {what}")
    if not 1 <= dims <= _MAX_DIMS:
        raise ModelError(
            f"{cursor.path}: {what} has {dims:,} dimensions, where ggml allows 1 to {_MAX_DIMS}: "
            f"the file is damaged, fetch it again"
        )
    ne = [cursor.u64(f"the dimensions of {what}") for _ in range(dims)]
    number = cursor.u32(f"the type of {what}")
    offset = cursor.u64(f"the offset of {what}")
    kind = TYPES.get(number)
    if kind is None:
        raise ModelError(
            f"{cursor.path}: {what} has quantisation type {number:,}, which this version of firstdiff does "
            f"not know: take a newer firstdiff, or requantise the model, for instance to Q8_0"
        )
    if 0 in ne or ne[0] % kind.block:
        raise ModelError(
            f"{cursor.path}: {what} has dimensions {ne} (row length first), where {kind.name} takes rows of "
            f"a positive multiple of {kind.block:,}: the file is damaged, fetch it again"
        )
    return name, tuple(reversed(ne)), kind, offset


def _check_overlap(path: Path, tensors: Iterable[TensorInfo]) -> None:
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    for one, other in pairwise(ordered):
        if one.offset + one.nbytes > other.offset:
            raise ModelError(
                f"{path}: tensor {quoted(one.name)} (offset {one.offset:,}, size {one.nbytes:,}) overlaps "
                f"tensor {quoted(other.name)} (offset {other.offset:,}): the file is damaged, fetch it again"
            )
