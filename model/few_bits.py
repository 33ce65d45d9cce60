"""Tables of numbers of few bits: what codes of four bits stand for, and scales of eight.

Source: ggml/src/ggml-common.h and ggml/src/ggml-impl.h.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

NON_LINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""Values of the codes of IQ4_NL and IQ4_XS (``kvalues_iq4nl``)."""

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the values of four bits as sign, two bits of exponent, one of fraction (``kvalues_fp4``)."""


def _e8m0() -> Floats:
    """Half of 2^(e - 127) for each byte e: the table of values is doubled (``ggml_e8m0_to_fp32_half``)."""
    bits = np.arange(-1, 255).astype(np.uint32) << np.uint32(23)
    bits[:2] = 0x200000, 0x400000  # subnormal
    return bits.view(np.float32)


def float8(exponent_bits: int, bias: int) -> Floats:
    """Half of what each byte stands for as a float without a sign: bits of exponent, and the rest of fraction."""
    bits = 7 - exponent_bits
    byte = np.arange(256) & 127
    exponent, fraction = byte >> bits, (byte & (1 << bits) - 1) / (1 << bits)
    value = np.where(exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias))
    return np.asarray(value / 2, np.float32)


def _ue4m3() -> Floats:
    """Scales of NVFP4, halved as those of MXFP4 are (``ggml_ue4m3_to_fp32``)."""
    numbers = float8(4, 7)
    numbers[0x7F] = 0  # NaN in the format, which ggml reads as 0
    return numbers


E8M0, UE4M3 = _e8m0(), _ue4m3()
