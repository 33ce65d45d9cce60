"""What kernels are made of: the arrays that they take, and float16, which numba does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Kernel = Callable[[Bytes, Floats], None]
_F = TypeVar("_F")


def inlined(function: _F) -> _F:
    """Have kernels take a function in, instead of calling it."""
    return cast("_F", njit(inline="always")(function))


@inlined
def widened(half: np.uint16) -> np.uint32:
    """Return the bits of a float16 as a float32's (``ggml_compute_fp16_to_fp32``)."""
    w = np.uint32(np.uint32(half) << np.uint32(16))
    rest = np.uint32(w + w)  # without the sign
    normal = np.uint32((rest >> np.uint32(4)) + np.uint32(0x70000000)).view(np.float32)
    normal = np.float32(normal * np.float32(2.0**-112))
    tiny = np.uint32((rest >> np.uint32(17)) | np.uint32(126 << 23)).view(np.float32)
    tiny = np.float32(tiny - np.float32(0.5))
    value = normal.view(np.uint32) if rest >= np.uint32(1 << 27) else tiny.view(np.uint32)
    return np.uint32(w & np.uint32(0x80000000) | value)


@inlined
def half_of(low: np.uint8, high: np.uint8) -> np.float32:
    """Return the float16 of two bytes."""
    return np.uint32(widened(np.uint16(low | high << 8))).view(np.float32)
