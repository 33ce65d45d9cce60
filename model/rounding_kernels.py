"""Kernels that round float32 numbers to narrower floats, to the bit.

Every kernel takes ``x`` and ``out`` (float32, as long).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import types

from firstdiff.model.kernels import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rounding = Callable[[Floats, Floats], None]

_SIGNATURE = types.void(types.Array(types.float32, 1, "C", readonly=True), types.float32[::1])


def load(kind: str) -> Rounding:
    """Return the compiled kernel that rounds to a type, as :func:`firstdiff.model.kernels.load` does."""
    return compiled(_KERNELS[kind], _SIGNATURE, kind)


_MAGNITUDE, _EXPONENT = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)
_LEAST, _MOST = np.uint32(113 << 23), np.uint32(143 << 23)  # of 2^-14, f16's smallest normal number, and of 2^16


def _to_f16(x: Floats, out: Floats) -> None:
    """To nearest, ties to even: what is added and taken away again has a unit in the last place of f16's at `x`."""
    bits, rounded = x.view(np.uint32), out.view(np.uint32)
    for i in range(out.size):
        size = np.uint32(bits[i] & _MAGNITUDE)
        exponent = min(max(np.uint32(size & _EXPONENT), _LEAST), _MOST)
        added = np.uint32(exponent + np.uint32(13 << 23)).view(np.float32)
        near = np.float32(np.float32(size.view(np.float32) + added) - added)
        word = _EXPONENT if near > np.float32(65504) else near.view(np.uint32)
        rounded[i] = np.uint32(word | (bits[i] & np.uint32(0x80000000)))


def _to_bf16(x: Floats, out: Floats) -> None:
    """To nearest, ties to even, on the upper 16 bits (``ggml_compute_fp32_to_bf16``)."""
    bits, rounded = x.view(np.uint32), out.view(np.uint32)
    for i in range(out.size):
        word = bits[i]
        near = np.uint32(word + np.uint32(0x7FFF) + (word >> np.uint32(16) & np.uint32(1))) & np.uint32(0xFFFF0000)
        rounded[i] = word if np.uint32(word & _MAGNITUDE) > _EXPONENT else np.uint32(near)  # NaN stays NaN


def _to_tf32(x: Floats, out: Floats) -> None:
    """Ten bits after the point, to nearest, ties away from zero (PTX ``cvt.rna.tf32.f32``)."""
    bits, rounded = x.view(np.uint32), out.view(np.uint32)
    for i in range(out.size):
        word = bits[i]
        near = np.uint32(word + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)
        rounded[i] = word if np.uint32(word & _EXPONENT) == _EXPONENT else np.uint32(near)


def _to_tf32_truncated(x: Floats, out: Floats) -> None:
    """The other bits cut off: what a tensor core does to float32 numbers that nobody rounded before."""
    bits, rounded = x.view(np.uint32), out.view(np.uint32)
    for i in range(out.size):
        word = bits[i]
        rounded[i] = word if np.uint32(word & _EXPONENT) == _EXPONENT else np.uint32(word & np.uint32(0xFFFFE000))


_KERNELS: dict[str, Rounding] = {
    "f16": _to_f16,
    "bf16": _to_bf16,
    "tf32": _to_tf32,
    "tf32-truncated": _to_tf32_truncated,
}
