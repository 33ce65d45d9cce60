"""Kernels of types of four bits and fewer whose codes are places in a short table, or plain digits.

What a kernel is, and how its loops are written, is said in :mod:`firstdiff.model.kernels`.
"""

from __future__ import annotations

import numpy as np

from firstdiff.model.few_bits import E2M1, E8M0, NON_LINEAR, UE4M3
from firstdiff.model.kernel_parts import Bytes, Floats, Kernel, half_of


def _iq4_nl(raw: Bytes, out: Floats) -> None:
    """18 bytes, 32 values: f16 d, 16 bytes of nibbles (low: first half); ``d * table[q]``."""
    for i in range(raw.size // 18):
        block = raw[18 * i : 18 * i + 18]
        first, second = out[32 * i : 32 * i + 16], out[32 * i + 16 : 32 * i + 32]
        d = half_of(block[0], block[1])
        for j in range(first.size):
            first[j] = d * NON_LINEAR[block[2 + j] & 15]
        for j in range(second.size):
            second[j] = d * NON_LINEAR[block[2 + j] >> 4]


def _iq4_xs(raw: Bytes, out: Floats) -> None:
    """136 bytes, 256 values: f16 d, 8 6-bit scales (high 2 bits in 2 bytes, low 4 in 4), 128 bytes of nibbles.

    ``(d * (scale - 32)) * table[q]``, a scale for each 32 values.
    """
    for i in range(raw.size // 136):
        block = raw[136 * i : 136 * i + 136]
        d = half_of(block[0], block[1])
        for g in range(8):
            start = 256 * i + 32 * g
            first, second = out[start : start + 16], out[start + 16 : start + 32]
            q = block[8 + 16 * g : 24 + 16 * g]
            high = block[2 + g // 4] >> (2 * (g % 4)) & 3
            scale = d * np.float32(np.int32((block[4 + g // 2] >> (4 * (g % 2)) & 15 | high << 4) - 32))
            for j in range(first.size):
                first[j] = scale * NON_LINEAR[q[j] & 15]
            for j in range(second.size):
                second[j] = scale * NON_LINEAR[q[j] >> 4]


def _mxfp4(raw: Bytes, out: Floats) -> None:
    """17 bytes, 32 values: E8M0 d, 16 bytes of nibbles (low: first half); ``table[q] * d``."""
    for i in range(raw.size // 17):
        block = raw[17 * i : 17 * i + 17]
        first, second = out[32 * i : 32 * i + 16], out[32 * i + 16 : 32 * i + 32]
        d = E8M0[block[0]]
        for j in range(first.size):
            first[j] = E2M1[block[1 + j] & 15] * d
        for j in range(second.size):
            second[j] = E2M1[block[1 + j] >> 4] * d


def _nvfp4(raw: Bytes, out: Floats) -> None:
    """36 bytes, 64 values: 4 UE4M3 d, then 8 bytes of nibbles for each (low: first half); ``table[q] * d``."""
    for i in range(raw.size // 36):
        block = raw[36 * i : 36 * i + 36]
        for g in range(4):
            start = 64 * i + 16 * g
            first, second = out[start : start + 8], out[start + 8 : start + 16]
            q = block[4 + 8 * g : 12 + 8 * g]
            d = UE4M3[block[g]]
            for j in range(first.size):
                first[j] = E2M1[q[j] & 15] * d
            for j in range(second.size):
                second[j] = E2M1[q[j] >> 4] * d


def _q1_0(raw: Bytes, out: Floats) -> None:
    """18 bytes, 128 values: f16 d, 16 bytes of signs, lowest bit first; ``d`` or ``-d``."""
    for i in range(raw.size // 18):
        block = raw[18 * i : 18 * i + 18]
        y = out[128 * i : 128 * i + 128]
        d = half_of(block[0], block[1])
        for j in range(y.size):
            y[j] = d if block[2 + j // 8] >> (j % 8) & 1 else -d


def _q2_0(raw: Bytes, out: Floats) -> None:
    """18 bytes, 64 values: f16 d, 16 bytes of 2-bit codes, lowest first; ``(q - 1) * d``."""
    for i in range(raw.size // 18):
        block = raw[18 * i : 18 * i + 18]
        y = out[64 * i : 64 * i + 64]
        d = half_of(block[0], block[1])
        for j in range(y.size):
            y[j] = np.float32(np.int32((block[2 + j // 4] >> (2 * (j % 4)) & 3) - 1)) * d


def _tq1_0(raw: Bytes, out: Floats) -> None:
    """54 bytes, 256 values: 48 bytes of 5 ternary digits, 4 bytes of 4, f16 d; ``(digit - 1) * d``.

    Byte b stands for the fraction b / 256: its first digit is 3 * b >> 8, the low 8 bits of 3 * b hold the rest. The
    digits of 32 bytes lie 32 values apart, then those of 16 bytes 16 apart, then those of 4 bytes 4 apart.
    """
    for i in range(raw.size // 54):
        block = raw[54 * i : 54 * i + 54]
        d = half_of(block[52], block[53])
        for n in range(5):
            power = np.uint8(3**n)
            first, second = (
                out[256 * i + 32 * n : 256 * i + 32 * n + 32],
                out[256 * i + 160 + 16 * n : 256 * i + 176 + 16 * n],
            )
            for j in range(first.size):
                first[j] = np.float32(np.int32((np.uint8(block[j] * power) * 3 >> 8) - 1)) * d
            for j in range(second.size):
                second[j] = np.float32(np.int32((np.uint8(block[32 + j] * power) * 3 >> 8) - 1)) * d
        for n in range(4):
            power = np.uint8(3**n)
            last = out[256 * i + 240 + 4 * n : 256 * i + 244 + 4 * n]
            for j in range(last.size):
                last[j] = np.float32(np.int32((np.uint8(block[48 + j] * power) * 3 >> 8) - 1)) * d


def _tq2_0(raw: Bytes, out: Floats) -> None:
    """66 bytes, 256 values: 64 bytes of 2-bit digits, those of 32 bytes 32 values apart, f16 d; ``(digit - 1) * d``."""
    for i in range(raw.size // 66):
        block = raw[66 * i : 66 * i + 66]
        d = half_of(block[64], block[65])
        for g in range(8):
            y = out[256 * i + 32 * g : 256 * i + 32 * g + 32]
            q = block[32 * (g // 4) : 32 * (g // 4) + 32]
            shift = np.uint8(2 * (g % 4))
            for j in range(y.size):
                y[j] = np.float32(np.int32((q[j] >> shift & 3) - 1)) * d


KERNELS: dict[str, Kernel] = {
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
}
