"""float32 numbers rounded to narrower floats and held in float32 again: f16, bf16, TF32.

numpy has no bf16 and no TF32, and its conversion to f16 and back is far slower than a compiled one.
numba is imported by the first :func:`narrowed`, not by this module.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from firstdiff.model.rounding_kernels import Rounding

    Floats = NDArray[np.float32]


def narrowed(x: Floats, kind: str) -> Floats:
    """Numbers rounded to ``f16``, ``bf16``, ``tf32`` or ``tf32-truncated``.

    f16 and bf16: to nearest, ties to even, and to infinity beyond the largest number. TF32: as its kernel says. What is
    not finite stays as it is.

    Raises
    ------
    KeyError
        For another kind.
    """
    out = np.empty(x.shape, np.float32)
    _kernel(kind)(np.ascontiguousarray(x).reshape(-1), out.reshape(-1))
    return out


@cache
def _kernel(kind: str) -> Rounding:
    from firstdiff.model import rounding_kernels

    return rounding_kernels.load(kind)
