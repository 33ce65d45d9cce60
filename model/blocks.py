"""Raw blocks of quantised weights taken apart: block scales, minima, scales of sub-blocks, bits of the codes.

Which type has what where is in :mod:`firstdiff.model.block_layouts`.

A `Layout` says where a type keeps each of them, and `Fields` are what was read; both are records that can be
changed, which is how a decoder that reads blocks wrongly is written down. For values alone,
`firstdiff.model.quants.dequantize` is the faster way.

Source: the structs of ggml/src/ggml-common.h and ``dequantize_row_*`` of ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float32]
Half = Callable[[npt.NDArray[np.uint16]], Floats]
Unpack = Callable[[Bytes], tuple[Codes, Codes | None]]


@dataclass(frozen=True, slots=True)
class Plane:
    """Where a block keeps some bits of all its codes.

    A run of `width` bytes holds `width` codes in its lowest bits, the next `width` codes in the bits above
    them, and so on; then comes the next run.

    Attributes
    ----------
    start, nbytes
        The bytes of the block.
    bits
        Bits of each code.
    width
        Bytes of a run.
    shifts
        How far down each code of a byte is shifted, in the order of the elements. Lowest bits first by default.
    arithmetic
        Whether the topmost code of a byte keeps its sign when shifted: no type does so, a port may.
    """

    start: int
    nbytes: int
    bits: int
    width: int
    shifts: tuple[int, ...] = ()
    arithmetic: bool = False

    def read(self, raw: Bytes) -> npt.NDArray[np.int8]:
        """Bits of every code, int8 [block, code], of blocks uint8 [block, byte]."""
        shifts = self.shifts or tuple(range(0, 8, self.bits))
        blocks, runs = len(raw), self.nbytes // self.width
        source = raw[:, self.start : self.start + self.nbytes].reshape(blocks, runs, self.width)
        codes = np.empty((blocks, runs, len(shifts), self.width), np.uint8)
        for i, shift in enumerate(shifts):
            np.right_shift(source, shift, out=codes[:, :, i])
        codes &= (1 << self.bits) - 1
        if self.arithmetic:
            top = shifts.index(8 - self.bits)
            np.right_shift(source.view(np.int8), 8 - self.bits, out=codes[:, :, top].view(np.int8))
        return codes.view(np.int8).reshape(blocks, runs * len(shifts) * self.width)


@dataclass(frozen=True, slots=True)
class Digits:
    """Where a block of TQ1_0 keeps its ternary digits, several a byte.

    Byte b stands for the fraction b / 256. Its first ternary digit is 3 * b >> 8, and the low 8 bits of 3 * b hold the
    rest.

    Attributes
    ----------
    runs
        First byte, bytes, and digits per byte of each run. The first digits of a run's bytes come first, then the
        second ones.
    bits
        As of a plane.
    neighbours, last_first, whole
        Whether the digits of a byte are neighbours, come last one first, or are those of b itself, and not of a
        fraction: no type has them so, a port may.
    """

    runs: tuple[tuple[int, int, int], ...]
    bits: int = 2
    neighbours: bool = False
    last_first: bool = False
    whole: bool = False

    def read(self, raw: Bytes) -> npt.NDArray[np.int8]:
        """Every digit, int8 [block, digit], of blocks uint8 [block, byte]."""
        found = []
        for start, nbytes, digits in self.runs:
            run, order = raw[:, start : start + nbytes], range(digits)[:: -1 if self.last_first else 1]
            powers = np.array([3**n for n in order], np.uint8)[:, None]
            taken = run[:, None] // powers % 3 if self.whole else (run[:, None] * powers).astype(np.uint16) * 3 >> 8
            turned = taken.swapaxes(1, 2) if self.neighbours else taken  # [block, digit, byte]
            found.append(turned.reshape(len(raw), nbytes * digits))
        return np.hstack(found).astype(np.int8)


@dataclass(frozen=True, slots=True)
class Fields:
    """What blocks hold. ``value = d * scale * number``, plus or minus the minimum ``m * min``.

    The number is the code less the offset, or the one that the code stands for in a table.

    Attributes
    ----------
    d
        Scale of each block, float32 [block].
    low
        Codes, or their low bits, [block, code].
    high
        Their high bits, [block, code], if kept apart.
    low_bits
        How far up `high` belongs.
    offset
        What is subtracted from a code.
    table
        The number that each code stands for, or None.
    m
        ``m`` of Q4_1 and Q5_1, which is added, or ``dmin`` of the K types, float32 [block].
    scales, mins
        The numbers of each sub-block, [block, sub-block]: integers, and floats in NVFP4.
    subtracted
        Whether the minimum is subtracted, as in the K types.
    """

    d: Floats
    low: Codes
    high: Codes | None
    low_bits: int
    offset: int
    m: Floats | None
    scales: Codes | None
    mins: Codes | None
    subtracted: bool
    table: Floats | None = None

    @property
    def unsigned(self) -> Codes:
        """Codes as stored, before the offset is subtracted, [block, code]."""
        return self.low if self.high is None else self.low | self.high << self.low_bits

    @property
    def codes(self) -> Codes | Floats:
        """Codes with the offset subtracted, or the numbers of the table that they stand for, [block, code]."""
        if self.table is not None:
            return self.table[self.unsigned]
        return self.unsigned - np.int8(self.offset) if self.offset else self.unsigned

    @property
    def scale(self) -> Floats:
        """What codes are multiplied by, float32 [block, sub-block]."""
        return _times(self.d, self.scales)

    @property
    def minimum(self) -> Floats | None:
        """What is added to their products or subtracted, float32 [block, sub-block]; None where there is none."""
        return None if self.m is None else _times(self.m, self.mins)

    def values(self) -> Floats:
        """Values, float32 [block, code]; in ggml's order of operations, so that they are equal to ggml's."""
        scale, minimum, codes = self.scale, self.minimum, self.codes
        y = codes.astype(np.float32).reshape(len(codes), scale.shape[1], codes.shape[1] // scale.shape[1])
        with np.errstate(all="ignore"):  # what a damaged or misread scale holds may be anything
            y *= scale[:, :, None]
            if minimum is not None:
                (np.subtract if self.subtracted else np.add)(y, minimum[:, :, None], out=y)
        return y.reshape(codes.shape)


def _times(d: Floats, numbers: Codes | None) -> Floats:
    """A block's number times those of its sub-blocks, float32 [block, sub-block]."""
    with np.errstate(all="ignore"):  # d may be infinite, or a signalling NaN
        return d[:, None] if numbers is None else d[:, None] * numbers.astype(np.float32)


def half(bits: npt.NDArray[np.uint16]) -> Floats:
    """Float16 of its bits, as float32 (``GGML_FP16_TO_FP32``)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return bits.view(np.float16).astype(np.float32)


def looked_up(numbers: Floats) -> Unpack:
    """Scales of sub-blocks that are a byte each, and stand for the numbers of a table."""
    # The one kind of scales that are no integers.
    return lambda packed: (cast("Codes", numbers[packed]), None)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the blocks of a type keep what.

    Attributes
    ----------
    d, m
        First byte of the block's scale and of its minimum's scale; None where only sub-blocks have scales.
    low, high
        The bits of the codes.
    offset
        What is subtracted from a code.
    table
        The number that each code stands for; None where it is the code less the offset.
    packed
        The bytes of the scales of sub-blocks.
    unpack
        Scales and minima of those bytes, uint8 [block, byte] to [block, sub-block].
    half
        Turns the stored bits of `d` and `m` into numbers: 16 bits, or 8 where `byte`.
    byte
        Whether `d` is of one byte.
    """

    d: int | None
    low: Plane | Digits
    high: Plane | None = None
    m: int | None = None
    offset: int = 0
    table: Floats | None = None
    packed: tuple[int, int] = (0, 0)
    unpack: Unpack | None = None
    half: Half = field(default=half)
    byte: bool = False

    def fields(self, raw: Bytes) -> Fields:
        """Take blocks apart, uint8 [block, byte]."""
        scales, mins = (None, None) if self.unpack is None else self.unpack(raw[:, slice(*self.packed)])
        return Fields(
            d=np.ones(len(raw), np.float32) if self.d is None else self._half(raw, self.d),
            low=self.low.read(raw),
            high=None if self.high is None else self.high.read(raw),
            low_bits=self.low.bits,
            offset=self.offset,
            table=self.table,
            m=None if self.m is None else self._half(raw, self.m),
            scales=scales,
            mins=mins,
            subtracted=self.unpack is not None,
        )

    def _half(self, raw: Bytes, start: int) -> Floats:
        return self.half(
            raw[:, start].astype("<u2") if self.byte else raw[:, start : start + 2].copy().view("<u2")[:, 0]
        )
