"""Scales read wrongly: the 16 bits of a block's scale taken for another number, 6-bit scales unpacked otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from firstdiff.model.block_layouts import LAYOUTS
from firstdiff.model.blocks import Bytes, Codes, Floats, Plane, Unpack, half

Bits = npt.NDArray[np.uint16]
Number = Callable[[Bits], Floats]
Packed = tuple[Codes, Codes | None]

SUBNORMAL = 0x0400
"""A float16 whose bits without the sign are below this has no exponent."""


def _tiny(bits: Bits) -> npt.NDArray[np.bool_]:
    return (bits & 0x7FFF) < SUBNORMAL


def halved(bits: Bits) -> Floats:
    """Subnormal numbers with the exponent one too low."""
    return np.where(_tiny(bits), np.float32(0.5), np.float32(1)) * _quiet(half(bits))


def doubled(bits: Bits) -> Floats:
    """Subnormal numbers with the exponent one too high."""
    return np.where(_tiny(bits), np.float32(2), np.float32(1)) * _quiet(half(bits))


def flushed(bits: Bits) -> Floats:
    """Subnormal numbers as zero."""
    return np.where(_tiny(bits), np.float32(0), half(bits))


def rebiased(bits: Bits) -> Floats:
    """Every number with an implicit one and the exponent's bias exchanged, zero and subnormal numbers too."""
    wide = bits.astype(np.uint32)
    number: Floats = ((wide & 0x8000) << 16 | ((wide & 0x7FFF) << 13) + (112 << 23)).view(np.float32)
    return number


def swapped(bits: Bits) -> Floats:
    """The two bytes in the other order."""
    return half(bits.byteswap())


def bf16(bits: Bits) -> Floats:
    """The upper half of a float32."""
    number: Floats = (bits.astype(np.uint32) << 16).view(np.float32)
    return number


def _quiet(number: Floats) -> Floats:
    """A signalling NaN made quiet, so that no product warns of it."""
    return np.where(np.isnan(number), np.float32(np.nan), number)


def exchanged(kind: str) -> Unpack:
    """Scales taken for minima and minima for scales."""

    def unpack(packed: Bytes) -> Packed:
        right = LAYOUTS[kind].unpack
        assert right is not None
        scales, mins = right(packed)
        assert mins is not None
        return mins, scales

    return unpack


# Q4_K and Q5_K: bytes 0 to 3 hold scales 0 to 3, bytes 4 to 7 minima 0 to 3, bytes 8 to 11 the lower 4 bits of
# scales (low nibble) and minima 4 to 7; their upper 2 bits are on top of the first 8 bytes (get_scale_min_k4).


def k4_without_upper_branch(packed: Bytes) -> Packed:
    """``scales[j] & 63`` and ``scales[j + 4] & 63`` for every j."""
    return packed[:, 0:8] & 63, packed[:, 4:12] & 63


def k4_without_top_bits(packed: Bytes) -> Packed:
    """The upper 2 bits of scales and minima 4 to 7 left out."""
    return np.hstack([packed[:, 0:4] & 63, packed[:, 8:] & 15]), np.hstack([packed[:, 4:8] & 63, packed[:, 8:] >> 4])


def k4_without_mask(packed: Bytes) -> Packed:
    """Scales and minima 0 to 3 with the bits of their neighbours still on top."""
    scales, mins = _k4(packed)
    return np.hstack([packed[:, 0:4], scales[:, 4:]]), np.hstack([packed[:, 4:8], mins[:, 4:]])


def k4_top_bits_exchanged(packed: Bytes) -> Packed:
    """The upper bits of scales taken from where those of minima are, and the reverse."""
    one, two, three = packed[:, 0:4], packed[:, 4:8], packed[:, 8:]
    return np.hstack([one & 63, three & 15 | two >> 6 << 4]), np.hstack([two & 63, three >> 4 | one >> 6 << 4])


def k4_nibbles_exchanged(packed: Bytes) -> Packed:
    """The lower bits of scales taken from the high nibble, those of minima from the low one."""
    one, two, three = packed[:, 0:4], packed[:, 4:8], packed[:, 8:]
    return np.hstack([one & 63, three >> 4 | one >> 6 << 4]), np.hstack([two & 63, three & 15 | two >> 6 << 4])


def k4_pairs_in_sequence(packed: Bytes) -> Packed:
    """Eight entries of 12 bits, a scale and its minimum each (seen in paiml/trueno#182)."""
    six = _six_bits(packed)
    return six[:, 0::2], six[:, 1::2]


def k4_all_in_sequence(packed: Bytes) -> Packed:
    """Sixteen numbers of 6 bits, first the scales."""
    six = _six_bits(packed)
    return six[:, :8], six[:, 8:]


def _k4(packed: Bytes) -> tuple[Codes, Codes]:
    right = LAYOUTS["Q4_K"].unpack
    assert right is not None
    scales, mins = right(packed)
    assert mins is not None
    return scales, mins


def _six_bits(packed: Bytes) -> Codes:
    """12 bytes as a stream of 6-bit numbers, lowest bits first, int8 [block, 16]."""
    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), 16, 6)
    return np.packbits(bits, axis=2, bitorder="little")[:, :, 0].view(np.int8)


# Q3_K: the lower 4 bits of scales 0 to 7 in the low nibbles of 8 bytes, of scales 8 to 15 in the high ones, and
# the upper 2 bits of scales g, g + 4, g + 8 and g + 12 in byte 8 + g.


def q3(
    low_width: int = 8, high_width: int = 4, finish: Callable[[Codes], Codes] = lambda scales: scales - np.int8(32)
) -> Unpack:
    """Nibbles and upper bits in runs of other widths, or another last step than subtracting 32."""

    def unpack(packed: Bytes) -> Packed:
        lower = Plane(0, 8, bits=4, width=low_width).read(packed)
        upper = Plane(8, 4, bits=2, width=high_width).read(packed)
        return finish(lower | upper << 4), None

    return unpack


def as_stored(scales: Codes) -> Codes:
    """Nothing subtracted."""
    return scales


def twos_complement(scales: Codes) -> Codes:
    """The sixth bit as a sign."""
    return (scales ^ 32) - np.int8(32)


def lower_bits(less: int) -> Callable[[Codes], Codes]:
    """The lower 4 bits alone, less an offset."""
    return lambda scales: (scales & 15) - np.int8(less)


def q3_in_sequence(packed: Bytes) -> Packed:
    """Sixteen numbers of 6 bits."""
    return _six_bits(packed) - np.int8(32), None


# IQ4_XS: the upper 2 bits of scales 0 to 7 in 2 bytes, their lower 4 bits in the nibbles of 4, low ones first.


def xs(
    *,
    less: int = 32,
    low_shifts: tuple[int, ...] = (0, 4),
    high_shifts: tuple[int, ...] = (0, 2, 4, 6),
    low_width: int = 1,
    high_width: int = 1,
) -> Unpack:
    """Nibbles and upper bits in another order, or another number than 32 subtracted; no shifts: no upper bits."""

    def unpack(packed: Bytes) -> Packed:
        scales = Plane(2, 4, bits=4, width=low_width, shifts=low_shifts).read(packed)
        if high_shifts:
            scales = scales | Plane(0, 2, bits=2, width=high_width, shifts=high_shifts).read(packed) << 4
        return scales - np.int8(less), None

    return unpack
