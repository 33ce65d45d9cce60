"""Kernels of the types whose codes are entries of a grid: IQ1, IQ2 and IQ3.

What a kernel is, and how its loops are written, is said in :mod:`firstdiff.model.kernels`.
"""

from __future__ import annotations

import numpy as np

from firstdiff.model.grids import DELTA, grid, signs
from firstdiff.model.kernel_parts import Bytes, Floats, Kernel, half_of, inlined

_IQ2_XXS, _IQ2_XS, _IQ2_S = grid("IQ2_XXS"), grid("IQ2_XS"), grid("IQ2_S")
_IQ3_XXS, _IQ3_S, _IQ1 = grid("IQ3_XXS"), grid("IQ3_S"), grid("IQ1")
_SIGNS = signs()
_HALF, _QUARTER, _DELTA = np.float32(0.5), np.float32(0.25), np.float32(DELTA)


@inlined
def _word(b: Bytes) -> np.uint32:
    """Return the uint32 of four bytes."""
    return np.uint32(np.uint32(b[0]) | np.uint32(b[1]) << 8 | np.uint32(b[2]) << 16 | np.uint32(b[3]) << 24)


def _iq2_xxs(raw: Bytes, out: Floats) -> None:
    """66 bytes, 256 values: f16 d, then for each 32 values 4 entries, and a word of 4 times 7 signs and a scale.

    ``(d * (0.5 + scale) * 0.25) * value * sign``.
    """
    for i in range(raw.size // 66):
        block = raw[66 * i : 66 * i + 66]
        d = half_of(block[0], block[1])
        for g in range(8):
            codes = block[2 + 8 * g : 10 + 8 * g]
            word = _word(codes[4:8])
            scale = d * (_HALF + np.float32(word >> 28)) * _QUARTER
            for k in range(4):
                y = out[256 * i + 32 * g + 8 * k : 256 * i + 32 * g + 8 * k + 8]
                values, sign = _IQ2_XXS[codes[k]], _SIGNS[word >> (7 * k) & 127]
                for j in range(y.size):
                    y[j] = scale * values[j] * sign[j]


def _iq2_xs(raw: Bytes, out: Floats) -> None:
    """74 bytes, 256 values: f16 d, 32 words of a 9-bit entry and 7 signs, 16 scales of 4 bits.

    ``(d * (0.5 + scale) * 0.25) * value * sign``, a scale for each 16 values.
    """
    for i in range(raw.size // 74):
        block = raw[74 * i : 74 * i + 74]
        d = half_of(block[0], block[1])
        for k in range(32):
            y = out[256 * i + 8 * k : 256 * i + 8 * k + 8]
            code = np.uint32(block[2 + 2 * k]) | np.uint32(block[3 + 2 * k]) << 8
            scale = d * (_HALF + np.float32(block[66 + k // 4] >> (4 * (k // 2 % 2)) & 15)) * _QUARTER
            values, sign = _IQ2_XS[code & 511], _SIGNS[code >> 9]
            for j in range(y.size):
                y[j] = scale * values[j] * sign[j]


def _iq2_s(raw: Bytes, out: Floats) -> None:
    """82 bytes, 256 values: f16 d, 32 entries, 32 bytes of signs, the entries' high 2 bits, 16 scales of 4 bits.

    ``(d * (0.5 + scale) * 0.25) * value * sign``, a scale for each 16 values.
    """
    for i in range(raw.size // 82):
        block = raw[82 * i : 82 * i + 82]
        d = half_of(block[0], block[1])
        for k in range(32):
            y = out[256 * i + 8 * k : 256 * i + 8 * k + 8]
            high = np.uint32(block[66 + k // 4] >> (2 * (k % 4)) & 3)
            scale = d * (_HALF + np.float32(block[74 + k // 4] >> (4 * (k // 2 % 2)) & 15)) * _QUARTER
            values, sign = _IQ2_S[block[2 + k] | high << 8], block[34 + k]
            for j in range(y.size):
                y[j] = scale * values[j] * (np.float32(-1) if sign >> j & 1 else np.float32(1))


def _iq3_xxs(raw: Bytes, out: Floats) -> None:
    """98 bytes, 256 values: f16 d, 64 entries of 4 values, then a word for each 32 values: 4 times 7 signs and a scale.

    ``(d * (0.5 + scale) * 0.5) * value * sign``.
    """
    for i in range(raw.size // 98):
        block = raw[98 * i : 98 * i + 98]
        d = half_of(block[0], block[1])
        for g in range(8):
            word = _word(block[66 + 4 * g : 70 + 4 * g])
            scale = d * (_HALF + np.float32(word >> 28)) * _HALF
            for k in range(8):
                y = out[256 * i + 32 * g + 4 * k : 256 * i + 32 * g + 4 * k + 4]
                values, sign = _IQ3_XXS[block[2 + 8 * g + k]], _SIGNS[word >> (7 * (k // 2)) & 127]
                for j in range(y.size):
                    y[j] = scale * values[j] * sign[4 * (k % 2) + j]


def _iq3_s(raw: Bytes, out: Floats) -> None:
    """110 bytes, 256 values: f16 d, 64 entries of 4 values, their high bits, 32 bytes of signs, 8 scales of 4 bits.

    ``(d * (1 + 2 * scale)) * value * sign``, a scale for each 32 values.
    """
    for i in range(raw.size // 110):
        block = raw[110 * i : 110 * i + 110]
        d = half_of(block[0], block[1])
        for k in range(64):
            y = out[256 * i + 4 * k : 256 * i + 4 * k + 4]
            high = np.uint32(block[66 + k // 8] >> (k % 8) & 1)
            scale = d * np.float32(1 + 2 * np.int32(block[106 + k // 16] >> (4 * (k // 8 % 2)) & 15))
            values, sign = _IQ3_S[block[2 + k] | high << 8], block[74 + k // 2] >> (4 * (k % 2))
            for j in range(y.size):
                y[j] = scale * values[j] * (np.float32(-1) if sign >> j & 1 else np.float32(1))


def _iq1_s(raw: Bytes, out: Floats) -> None:
    """50 bytes, 256 values: f16 d, 32 entries, for each 32 values their high 3 bits, a scale, and the delta's sign.

    ``(d * (2 * scale + 1)) * (value + delta)``.
    """
    for i in range(raw.size // 50):
        block = raw[50 * i : 50 * i + 50]
        d = half_of(block[0], block[1])
        for g in range(8):
            word = np.uint32(block[34 + 2 * g]) | np.uint32(block[35 + 2 * g]) << 8
            scale = d * np.float32(2 * np.int32(word >> 12 & 7) + 1)
            delta = -_DELTA if word & 0x8000 else _DELTA
            for k in range(4):
                y = out[256 * i + 32 * g + 8 * k : 256 * i + 32 * g + 8 * k + 8]
                values = _IQ1[block[2 + 4 * g + k] | (word >> (3 * k) & 7) << 8]
                for j in range(y.size):
                    y[j] = scale * (values[j] + delta)


def _iq1_m(raw: Bytes, out: Floats) -> None:
    """56 bytes, 256 values: 32 entries, 16 bytes of their high 3 bits and delta's signs, 8 bytes of scales.

    The topmost 4 bits of each of the four words of scales make up the f16 d, the lower 12 are four scales of 3 bits.
    ``(d * (2 * scale + 1)) * (value + delta)``, a scale for each 16 values.
    """
    for i in range(raw.size // 56):
        block = raw[56 * i : 56 * i + 56]
        low = block[49] >> 4 | block[51] & 0xF0
        high = block[53] >> 4 | block[55] & 0xF0
        d = half_of(np.uint8(low), np.uint8(high))
        for k in range(32):
            y = out[256 * i + 8 * k : 256 * i + 8 * k + 8]
            word = np.uint32(block[48 + 2 * (k // 8)]) | np.uint32(block[49 + 2 * (k // 8)]) << 8
            scale = d * np.float32(2 * np.int32(word >> (3 * (k // 2 % 4)) & 7) + 1)
            extra = np.uint32(block[32 + k // 2] >> (4 * (k % 2)) & 15)
            delta = -_DELTA if extra & 8 else _DELTA
            values = _IQ1[block[k] | (extra & 7) << 8]
            for j in range(y.size):
                y[j] = scale * (values[j] + delta)


KERNELS: dict[str, Kernel] = {
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
}
