"""Kernels of floats, of types with a scale and codes per block, and of the K types, whose blocks have sub-blocks.

What a kernel is, and how its loops are written, is said in :mod:`firstdiff.model.kernels`.
"""

from __future__ import annotations

import numpy as np

from firstdiff.model.kernel_parts import Bytes, Floats, Kernel, half_of, inlined, widened


def _f16(raw: Bytes, out: Floats) -> None:
    """2 bytes, one value."""
    halves = raw.view(np.uint16)
    words = out.view(np.uint32)
    for i in range(out.size):
        words[i] = widened(halves[i])


def _bf16(raw: Bytes, out: Floats) -> None:
    """2 bytes, one value: the upper half of a float32."""
    for i in range(out.size):
        bits = np.uint32(raw[2 * i]) << np.uint32(16) | np.uint32(raw[2 * i + 1]) << np.uint32(24)
        out[i] = np.uint32(bits).view(np.float32)


def _q4_0(raw: Bytes, out: Floats) -> None:
    """18 bytes, 32 values: f16 d, 16 bytes of nibbles (low: first half); ``(q - 8) * d``."""
    for i in range(raw.size // 18):
        block = raw[18 * i : 18 * i + 18]
        first, second = out[32 * i : 32 * i + 16], out[32 * i + 16 : 32 * i + 32]
        d = half_of(block[0], block[1])
        for j in range(first.size):
            first[j] = np.float32(np.int32((block[2 + j] & 15) - 8)) * d
        for j in range(second.size):
            second[j] = np.float32(np.int32((block[2 + j] >> 4) - 8)) * d


def _q4_1(raw: Bytes, out: Floats) -> None:
    """20 bytes, 32 values: f16 d, f16 m, 16 bytes of nibbles; ``q * d + m``."""
    for i in range(raw.size // 20):
        block = raw[20 * i : 20 * i + 20]
        first, second = out[32 * i : 32 * i + 16], out[32 * i + 16 : 32 * i + 32]
        d, m = half_of(block[0], block[1]), half_of(block[2], block[3])
        for j in range(first.size):
            first[j] = np.float32(block[4 + j] & 15) * d + m
        for j in range(second.size):
            second[j] = np.float32(block[4 + j] >> 4) * d + m


def _q5_0(raw: Bytes, out: Floats) -> None:
    """22 bytes, 32 values: f16 d, 32 high bits, 16 bytes of nibbles; ``(q - 16) * d``."""
    for i in range(raw.size // 22):
        block = raw[22 * i : 22 * i + 22]
        first, second = out[32 * i : 32 * i + 16], out[32 * i + 16 : 32 * i + 32]
        d = half_of(block[0], block[1])
        low = np.int32(block[2]) | np.int32(block[3]) << 8
        high = np.int32(block[4]) | np.int32(block[5]) << 8
        for j in range(first.size):
            q = (block[6 + j] & 15) | np.int32((low >> j & 1) << 4)
            first[j] = np.float32(np.int32(q - 16)) * d
        for j in range(second.size):
            q = (block[6 + j] >> 4) | np.int32((high >> j & 1) << 4)
            second[j] = np.float32(np.int32(q - 16)) * d


def _q5_1(raw: Bytes, out: Floats) -> None:
    """24 bytes, 32 values: f16 d, f16 m, 32 high bits, 16 bytes of nibbles; ``q * d + m``."""
    for i in range(raw.size // 24):
        block = raw[24 * i : 24 * i + 24]
        first, second = out[32 * i : 32 * i + 16], out[32 * i + 16 : 32 * i + 32]
        d, m = half_of(block[0], block[1]), half_of(block[2], block[3])
        low = np.int32(block[4]) | np.int32(block[5]) << 8
        high = np.int32(block[6]) | np.int32(block[7]) << 8
        for j in range(first.size):
            q = (block[8 + j] & 15) | np.int32((low >> j & 1) << 4)
            first[j] = np.float32(np.int32(q)) * d + m
        for j in range(second.size):
            q = (block[8 + j] >> 4) | np.int32((high >> j & 1) << 4)
            second[j] = np.float32(np.int32(q)) * d + m


def _q8_0(raw: Bytes, out: Floats) -> None:
    """34 bytes, 32 values: f16 d, 32 signed bytes; ``q * d``."""
    for i in range(raw.size // 34):
        block = raw[34 * i : 34 * i + 34]
        y = out[32 * i : 32 * i + 32]
        d = half_of(block[0], block[1])
        for j in range(y.size):
            y[j] = np.float32(np.int8(block[2 + j])) * d


def _q2_k(raw: Bytes, out: Floats) -> None:
    """84 bytes, 256 values: 16 scales and minima (4 bits each), 64 bytes of 2-bit q, f16 d, f16 dmin.

    ``(d * scale) * q - (dmin * min)``, a scale and a minimum for each 16 values.
    """
    for i in range(raw.size // 84):
        block = raw[84 * i : 84 * i + 84]
        d, dmin = half_of(block[80], block[81]), half_of(block[82], block[83])
        for g in range(16):
            y = out[256 * i + 16 * g : 256 * i + 16 * g + 16]
            q = block[16 + 32 * (g // 8) + 16 * (g % 2) : 32 + 32 * (g // 8) + 16 * (g % 2)]
            shift = np.uint8(2 * (g // 2 % 4))
            scale = d * np.float32(block[g] & 15)
            minimum = dmin * np.float32(block[g] >> 4)
            for j in range(y.size):
                y[j] = scale * np.float32(np.int32(q[j] >> shift & 3)) - minimum


def _q3_k(raw: Bytes, out: Floats) -> None:
    """110 bytes, 256 values: 32 bytes of high bits, 64 of low 2 bits, 16 6-bit scales in 12 bytes, f16 d.

    ``(d * (scale - 32)) * (q - 4)``, a scale for each 16 values.
    """
    for i in range(raw.size // 110):
        block = raw[110 * i : 110 * i + 110]
        d = half_of(block[108], block[109])
        for g in range(16):
            y = out[256 * i + 16 * g : 256 * i + 16 * g + 16]
            half = 16 * (g % 2)
            high = block[half : half + 16]
            q = block[32 + 32 * (g // 8) + half : 48 + 32 * (g // 8) + half]
            shift = np.uint8(2 * (g // 2 % 4))
            bit = np.uint8(g // 2)
            scale = block[96 + g % 8] >> (4 * (g // 8)) & 15 | (block[104 + g % 4] >> (2 * (g // 4)) & 3) << 4
            scale = d * np.float32(scale - 32)
            for j in range(y.size):
                y[j] = scale * np.float32(np.int32((q[j] >> shift & 3) + 4 * (high[j] >> bit & 1) - 4))


@inlined
def _scale_min(packed: Bytes, g: int) -> tuple[np.uint8, np.uint8]:
    """Return the 6-bit scale and minimum of group `g` of eight (``get_scale_min_k4``)."""
    if g < 4:
        return packed[g] & 63, packed[g + 4] & 63
    return (
        packed[g + 4] & 15 | packed[g - 4] >> 6 << 4,
        packed[g + 4] >> 4 | packed[g] >> 6 << 4,
    )


def _q4_k(raw: Bytes, out: Floats) -> None:
    """144 bytes, 256 values: f16 d, f16 dmin, 8 scales and minima (6 bits) in 12 bytes, 128 bytes of nibbles.

    ``(d * scale) * q - (dmin * min)``, a scale and a minimum for each 32 values.
    """
    for i in range(raw.size // 144):
        block = raw[144 * i : 144 * i + 144]
        d, dmin = half_of(block[0], block[1]), half_of(block[2], block[3])
        for g in range(8):
            y = out[256 * i + 32 * g : 256 * i + 32 * g + 32]
            q = block[16 + 32 * (g // 2) : 48 + 32 * (g // 2)]
            shift = np.uint8(4 * (g % 2))
            s, m = _scale_min(block[4:16], g)
            scale, minimum = d * np.float32(s), dmin * np.float32(m)
            for j in range(y.size):
                y[j] = scale * np.float32(np.int32(q[j] >> shift & 15)) - minimum


def _q5_k(raw: Bytes, out: Floats) -> None:
    """176 bytes, 256 values: as Q4_K, with 32 bytes of high bits before the nibbles."""
    for i in range(raw.size // 176):
        block = raw[176 * i : 176 * i + 176]
        d, dmin = half_of(block[0], block[1]), half_of(block[2], block[3])
        high = block[16:48]
        for g in range(8):
            y = out[256 * i + 32 * g : 256 * i + 32 * g + 32]
            q = block[48 + 32 * (g // 2) : 80 + 32 * (g // 2)]
            shift, bit = np.uint8(4 * (g % 2)), np.uint8(g)
            s, m = _scale_min(block[4:16], g)
            scale, minimum = d * np.float32(s), dmin * np.float32(m)
            for j in range(32):  # the one body that LLVM vectorises with a known bound, and then a third faster
                y[j] = scale * np.float32(np.int32((q[j] >> shift & 15) + 16 * (high[j] >> bit & 1))) - minimum


def _q6_k(raw: Bytes, out: Floats) -> None:
    """210 bytes, 256 values: 128 bytes of low nibbles, 64 bytes of high 2 bits, 16 signed scales, f16 d.

    ``(d * scale) * (q - 32)``, a scale for each 16 values.
    """
    for i in range(raw.size // 210):
        block = raw[210 * i : 210 * i + 210]
        d = half_of(block[208], block[209])
        for g in range(16):
            y = out[256 * i + 16 * g : 256 * i + 16 * g + 16]
            half = g // 8
            low = block[64 * half + 16 * (g % 4) : 64 * half + 16 * (g % 4) + 16]
            high = block[128 + 32 * half + 16 * (g % 2) : 144 + 32 * half + 16 * (g % 2)]
            shift, pair = np.uint8(4 * (g // 4 % 2)), np.uint8(2 * (g // 2 % 4))
            scale = d * np.float32(np.int8(block[192 + g]))
            for j in range(y.size):
                y[j] = scale * np.float32(np.int32((low[j] >> shift & 15 | (high[j] >> pair & 3) << 4) - 32))


KERNELS: dict[str, Kernel] = {
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
