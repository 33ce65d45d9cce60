"""Raw blocks of quantised weights taken apart: block scales, minima, scales of sub-blocks, bits of the codes.

A `Layout` says where a type keeps each of them, and `Fields` are what was read; both are records that can be
changed, which is how a decoder that reads blocks wrongly is written down. For values alone,
`firstdiff.model.quants.dequantize` is the faster way.

Source: the structs of ggml/src/ggml-common.h and ``dequantize_row_*`` of ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from firstdiff.model.quants import QuantType

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
class Fields:
    """What blocks hold. ``value = d * scale * (code - offset)``, plus or minus the minimum ``m * min``.

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
    m
        ``m`` of Q4_1 and Q5_1, which is added, or ``dmin`` of the K types, float32 [block].
    scales, mins
        Of the K types, the integers of each sub-block, [block, sub-block].
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

    @property
    def unsigned(self) -> Codes:
        """Codes as stored, before the offset is subtracted, [block, code]."""
        return self.low if self.high is None else self.low | self.high << self.low_bits

    @property
    def codes(self) -> Codes:
        """Codes with the offset subtracted, [block, code]."""
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


def _times(d: Floats, integers: Codes | None) -> Floats:
    """A block's number times the integers of its sub-blocks, float32 [block, sub-block]."""
    with np.errstate(all="ignore"):  # d may be infinite, or a signalling NaN
        return d[:, None] if integers is None else d[:, None] * integers.astype(np.float32)


def half(bits: npt.NDArray[np.uint16]) -> Floats:
    """Float16 of its bits, as float32 (``GGML_FP16_TO_FP32``)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return bits.view(np.float16).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the blocks of a type keep what.

    Attributes
    ----------
    d, m
        First byte of the block's scale and of its minimum's scale.
    low, high
        The bits of the codes.
    offset
        What is subtracted from a code.
    packed
        The bytes of the scales of sub-blocks.
    unpack
        Scales and minima of those bytes, uint8 [block, byte] to [block, sub-block].
    half
        The numbers `d` and `m` of their 16 bits.
    """

    d: int
    low: Plane
    high: Plane | None = None
    m: int | None = None
    offset: int = 0
    packed: tuple[int, int] = (0, 0)
    unpack: Unpack | None = None
    half: Half = field(default=half)

    def fields(self, raw: Bytes) -> Fields:
        """Take blocks apart, uint8 [block, byte]."""
        scales, mins = (None, None) if self.unpack is None else self.unpack(raw[:, slice(*self.packed)])
        return Fields(
            d=self._half(raw, self.d),
            low=self.low.read(raw),
            high=None if self.high is None else self.high.read(raw),
            low_bits=self.low.bits,
            offset=self.offset,
            m=None if self.m is None else self._half(raw, self.m),
            scales=scales,
            mins=mins,
            subtracted=self.unpack is not None,
        )

    def _half(self, raw: Bytes, start: int) -> Floats:
        return self.half(raw[:, start : start + 2].copy().view("<u2")[:, 0])


def _unpack_q2_k(packed: Bytes) -> tuple[Codes, Codes | None]:
    return packed & 15, packed >> 4


def _unpack_q3_k(packed: Bytes) -> tuple[Codes, Codes | None]:
    """16 scales of 6 bits: nibbles in 8 bytes, their upper 2 bits in 4, and 32 subtracted."""
    low, high = Plane(0, 8, bits=4, width=8), Plane(8, 4, bits=2, width=4)
    return (low.read(packed) | high.read(packed) << 4) - np.int8(32), None


def _unpack_q4_k(packed: Bytes) -> tuple[Codes, Codes | None]:
    """8 scales and 8 minima of 6 bits (``get_scale_min_k4``)."""
    one, two, three = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.hstack([one & 63, three & 15 | one >> 6 << 4])
    mins = np.hstack([two & 63, three >> 4 | two >> 6 << 4])
    return scales, mins


def _unpack_q6_k(packed: Bytes) -> tuple[Codes, Codes | None]:
    return packed.view(np.int8), None


LAYOUTS: dict[str, Layout] = {
    "Q4_0": Layout(d=0, low=Plane(2, 16, bits=4, width=16), offset=8),
    "Q4_1": Layout(d=0, m=2, low=Plane(4, 16, bits=4, width=16)),
    "Q5_0": Layout(d=0, high=Plane(2, 4, bits=1, width=1), low=Plane(6, 16, bits=4, width=16), offset=16),
    "Q5_1": Layout(d=0, m=2, high=Plane(4, 4, bits=1, width=1), low=Plane(8, 16, bits=4, width=16)),
    "Q8_0": Layout(d=0, low=Plane(2, 32, bits=8, width=32)),
    "Q2_K": Layout(packed=(0, 16), unpack=_unpack_q2_k, low=Plane(16, 64, bits=2, width=32), d=80, m=82),
    "Q3_K": Layout(
        high=Plane(0, 32, bits=1, width=32),
        low=Plane(32, 64, bits=2, width=32),
        packed=(96, 108),
        unpack=_unpack_q3_k,
        d=108,
        offset=4,
    ),
    "Q4_K": Layout(d=0, m=2, packed=(4, 16), unpack=_unpack_q4_k, low=Plane(16, 128, bits=4, width=32)),
    "Q5_K": Layout(
        d=0,
        m=2,
        packed=(4, 16),
        unpack=_unpack_q4_k,
        high=Plane(16, 32, bits=1, width=32),
        low=Plane(48, 128, bits=4, width=32),
    ),
    "Q6_K": Layout(
        low=Plane(0, 128, bits=4, width=64),
        high=Plane(128, 64, bits=2, width=32),
        packed=(192, 208),
        unpack=_unpack_q6_k,
        d=208,
        offset=32,
    ),
}
"""The types whose values are a scale times a code: every quantised type that is supported."""


def fields(raw: Bytes, kind: QuantType) -> Fields:
    """Take whole blocks apart, uint8 [block, byte], of a type in `LAYOUTS`. Each block stands for itself."""
    return LAYOUTS[kind.name].fields(raw)
