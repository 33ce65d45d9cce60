"""Faults that take a weight's bytes from other places than they are: across blocks, or from beside the tensor.

They work on the whole buffer, for what one block becomes depends on its neighbours.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from firstdiff.model.block_layouts import LAYOUTS
from firstdiff.model.blocks import Bytes
from firstdiff.model.gguf import GGUF, TensorInfo
from firstdiff.model.grid_blocks import GRIDS
from firstdiff.model.quants import BY_NAME, QuantType

ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT
OTHER_ALIGNMENTS = (16, 64, 128, 256, 4096)
COMMON = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Common types, whose block size an engine may use for another type."""

SHORT_BLOCKS = {"Q2_K": 72, "Q3_K": 104}  # seen in 1bit-MONSTER/1bit-MONSTER#488
"""Sizes seen in engines that no nearby number and no other type has."""

Change = Callable[[Bytes, QuantType, int], Bytes]


@dataclass(frozen=True, slots=True)
class BufferWay:
    """One way of taking a tensor's bytes from other places.

    Attributes
    ----------
    name
        What is done, in a few words.
    kinds
        The types that it makes sense for.
    change
        A tensor's bytes, uint8 [n], its type, and the blocks of a row, to the bytes that are decoded in their
        place, uint8 [n].
    """

    name: str
    kinds: tuple[str, ...]
    change: Change


@dataclass(frozen=True, slots=True)
class BufferFault:
    """A fault of loading, and the ways in which it is seen; as `BlockFault`."""

    id: str
    says: str
    fix: str
    ways: tuple[BufferWay, ...]


@dataclass(frozen=True, slots=True)
class Shift:
    """A tensor that begins `by` bytes late, or early where negative."""

    name: str
    by: int


QUANTISED = (*LAYOUTS, *GRIDS)
SCALED = tuple(kind for kind in QUANTISED if kind not in ("NVFP4", "IQ1_M"))
"""Types whose blocks have a scale each, in one place."""


def walked(raw: Bytes, kind: QuantType, stride: int, row: int | None = None) -> Bytes:
    """Take blocks `stride` bytes apart, where the type's are `kind.nbytes` apart.

    Parameters
    ----------
    raw
        A tensor's bytes, uint8 [n].
    kind
        Its type.
    stride
        Bytes from one block to the next.
    row
        Blocks of a row, if each row begins where it should; None for one walk over the whole tensor. What lies
        behind the tensor reads as zero.
    """
    blocks = raw.size // kind.nbytes
    per_row = blocks if row is None else row
    rows = blocks // per_row if per_row else 0
    end = max(0, (rows - 1) * per_row * kind.nbytes + (per_row - 1) * stride + kind.nbytes)
    padded = np.concatenate([raw, np.zeros(max(0, end - raw.size), np.uint8)])
    windows = np.lib.stride_tricks.as_strided(
        padded,
        (rows, per_row, kind.nbytes),
        (per_row * kind.nbytes, stride, 1),
        writeable=False,
    )
    return windows.reshape(-1)


def strides(kind: QuantType) -> tuple[int, ...]:
    """Sizes that are taken for a block's: first those seen in engines, then near ones, then other types'."""
    others = [BY_NAME[name].nbytes for name in COMMON if BY_NAME[name].block == kind.block]
    near = [kind.nbytes + by for by in (2, -2, 4, -4)]
    short = [SHORT_BLOCKS[kind.name]] if kind.name in SHORT_BLOCKS else []
    return tuple(size for size in dict.fromkeys([*short, *near, *others]) if size != kind.nbytes)


def long_header(raw: Bytes, kind: QuantType, _: int) -> Bytes:
    """Codes read from 2 bytes too late in each block, as if its header were 4 bytes long."""
    late = np.concatenate([raw[2:], np.zeros(2, np.uint8)]).reshape(-1, kind.nbytes)
    blocks = raw.reshape(-1, kind.nbytes)
    return np.hstack([blocks[:, :2], late[:, 2:]]).reshape(-1)


def scales_of_block(by: int) -> Change:
    """Each block with the block scale of the block `by` further on; none beyond the ends, which reads as zero."""

    def change(raw: Bytes, kind: QuantType, _: int) -> Bytes:
        blocks, at = raw.reshape(-1, kind.nbytes), _scale(kind)
        d = blocks[:, at]
        blocks = blocks.copy()
        blocks[:, at] = 0
        if by > 0:
            blocks[:-by, at] = d[by:]
        else:
            blocks[-by:, at] = d[:by]
        return blocks.reshape(-1)

    return change


def first_scale_of_row(raw: Bytes, kind: QuantType, row: int) -> Bytes:
    """Every block of a row with the block scale of its first."""
    blocks, at = raw.reshape(-1, row, kind.nbytes).copy(), _scale(kind)
    blocks[:, :, at] = blocks[:, :1, at]
    return blocks.reshape(-1)


def _scale(kind: QuantType) -> slice:
    """Where a block keeps its scale."""
    where = LAYOUTS.get(kind.name)
    if where is None:
        assert kind.name in SCALED
        return slice(0, 2)  # of types with grids
    assert where.d is not None
    return slice(where.d, where.d + (1 if where.byte else 2))


def first_block(raw: Bytes, kind: QuantType, _: int) -> Bytes:
    """The tensor's first block, all others zero."""
    blocks = np.zeros_like(raw)
    blocks[: kind.nbytes] = raw[: kind.nbytes]
    return blocks


def first_blocks(raw: Bytes, kind: QuantType, row: int) -> Bytes:
    """The first block of each row, all others zero."""
    blocks = raw.reshape(-1, row, kind.nbytes).copy()
    blocks[:, 1:] = 0
    return blocks.reshape(-1)


def _block_sizes() -> tuple[BufferWay, ...]:
    """Every type with every size in place of its own, the rows in their right places or not."""

    def walk(stride: int, *, whole: bool) -> Change:
        return lambda raw, kind, row: walked(raw, kind, stride, None if whole else row)

    return tuple(
        BufferWay(f"{stride} bytes in place of {BY_NAME[name].nbytes}{where}", (name,), walk(stride, whole=whole))
        for name in QUANTISED
        for stride in strides(BY_NAME[name])
        for whole, where in ((True, ""), (False, ", each row from its right start"))
    )


BUFFER_FAULTS: dict[str, BufferFault] = {
    fault.id: fault
    for fault in (
        BufferFault(
            "block-size",
            "blocks taken another number of bytes apart than they are: the first is right, then bytes drift",
            "take the size of a block from the type's struct (type_size in ggml.c)",
            _block_sizes(),
        ),
        BufferFault(
            "header-length",
            "4 bytes of header skipped in each block, where there are 2",
            "the codes begin 2 bytes into the block, behind a float16",
            (BufferWay("codes 2 bytes late", ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "Q1_0", "Q2_0"), long_header),),
        ),
        BufferFault(
            "scale-of-block",
            "blocks with the block scale of another block",
            "each block has its own d",
            (
                BufferWay("the next one's", SCALED, scales_of_block(1)),
                BufferWay("the one's before", SCALED, scales_of_block(-1)),
                BufferWay("the row's first", SCALED, first_scale_of_row),
            ),
        ),
        BufferFault(
            "blocks-unwritten",
            "only the first block decoded, the rest left zero",
            "decode every block of every row",
            (
                BufferWay("of the tensor", QUANTISED, first_block),
                BufferWay("of each row", QUANTISED, first_blocks),
            ),
        ),
    )
}
"""Faults of the whole buffer of a quantised weight."""


def shifted(gguf: GGUF, name: str, by: int) -> Bytes | None:
    """The bytes that a tensor seems to have where it is taken to begin `by` bytes late, uint8 [n].

    None where they would lie outside the file.
    """
    info = gguf.tensors[name]
    start = info.offset + by
    if start < 0 or start + info.nbytes > gguf.mapped[info.path].size:
        return None
    return gguf.mapped[info.path][start : start + info.nbytes]


def shifts(gguf: GGUF, name: str) -> tuple[Shift, ...]:
    """Where a tensor is taken to begin by engines that count wrongly, most plausible first, inside the file.

    Seen in ollama/ollama#18130 (``general.alignment`` ignored).
    """
    info = gguf.tensors[name]
    own = [t for t in gguf.tensors.values() if t.path == info.path]
    base = min(t.offset for t in own)
    padding = _header_padding(gguf, own, base)
    unpadded = base + sum(t.nbytes for t in own if t.offset < info.offset) - info.offset
    found: list[Shift] = []
    if padding is not None:
        end = base - padding
        found.append(Shift("the padding behind the header ignored", -padding))
        found += [
            Shift(f"data aligned to {n} bytes in place of {gguf.alignment}", -(-end // n) * n - base)
            for n in (ALIGNMENT, *OTHER_ALIGNMENTS)
        ]
        found.append(Shift("no padding at all", unpadded - padding))
    found.append(Shift("the padding between tensors ignored", unpadded))
    found.append(Shift("offsets counted from the file's start", -base))
    found += _neighbours(own, info)
    found += [
        Shift(f"{n} bytes {when}", sign * n)
        for n in dict.fromkeys((ALIGNMENT, gguf.alignment))
        for sign, when in ((1, "late"), (-1, "early"))
    ]
    first = {s.by: s for s in reversed(found) if s.by and shifted(gguf, name, s.by) is not None}
    return tuple(s for s in found if first.get(s.by) is s)


def _neighbours(own: list[TensorInfo], info: TensorInfo) -> list[Shift]:
    offsets = sorted(t.offset for t in own)
    place = offsets.index(info.offset)
    found = []
    if place + 1 < len(offsets):
        found.append(Shift("the next tensor's offset", offsets[place + 1] - info.offset))
    if place:
        found.append(Shift("the offset of the tensor before", offsets[place - 1] - info.offset))
    return found


def _header_padding(gguf: GGUF, own: list[TensorInfo], base: int) -> int | None:
    """Bytes between the end of a file's table of tensors and its data; None where no tensor begins the data."""
    table = b"".join(
        struct.pack("<Q", len(t.name.encode()))
        + t.name.encode()
        + struct.pack(f"<I{len(t.shape)}QIQ", len(t.shape), *reversed(t.shape), t.type.id, t.offset - base)
        for t in own
    )
    start = max(0, base - gguf.alignment - len(table))
    place = gguf.mapped[own[0].path][start:base].tobytes().rfind(table)
    return None if place < 0 else base - (start + place + len(table))
