"""Compiles the dequantisation kernels and keeps them; how a kernel is written.

There is one function per block format, which turns bytes into float32.

Each follows ggml's ``dequantize_row_*`` (ggml/src/ggml-quants.c) operation by operation, so that results
agree to the bit: the same products in the same order, no fused multiply-add, no fast-math.

Every kernel takes ``raw`` (uint8, whole blocks) and ``out`` (float32, one value an element). Inner loops write one run
of the output and are bounded by its size: LLVM vectorises them then, where it unrolls a loop of 32 whose bound it knows
into 32 scalar steps (half as fast). numba computes integers in 64 bits unless told otherwise: `np.int32` just before a
conversion to float32 lets LLVM narrow.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import pickle
from typing import TYPE_CHECKING, TypeVar, cast

from numba import njit, types

from firstdiff.model import block_kernels, few_bit_kernels, few_bits, grid_kernels, grids, kernel_parts

if TYPE_CHECKING:
    from firstdiff.model.kernel_parts import Kernel

_SIGNATURE = types.void(types.Array(types.uint8, 1, "C", readonly=True), types.float32[::1])
_KERNELS = block_kernels.KERNELS | few_bit_kernels.KERNELS | grid_kernels.KERNELS
_F = TypeVar("_F")
_log = logging.getLogger(__name__)


def _digest() -> str:
    """Return what changes with the modules that kernels take helpers and tables from.

    numba compiles a kernel anew where its own module has changed, and does not look at these.
    """
    taken_in = "".join(inspect.getsource(module) for module in (kernel_parts, few_bits, grids))
    return hashlib.sha256(taken_in.encode()).hexdigest()[:12]


_named = f"-{_digest()}"
for _kernel in _KERNELS.values():
    _kernel.__qualname__ += _named  # a part of the name of the file that numba keeps it in


def load(name: str) -> Kernel:
    """Return the compiled kernel of a type, from numba's cache if it is there, compiling it if not.

    Without a cache that can be read and written, the kernel is compiled for this process only (about 0.3 s).
    """
    return compiled(_KERNELS[name], _SIGNATURE, name)


def compiled(function: _F, signature: object, name: str) -> _F:
    """Return a kernel compiled for a signature, from numba's cache if it can be."""
    try:
        return cast("_F", njit(signature, nogil=True, cache=True)(function))
    except (RuntimeError, OSError, EOFError, pickle.PickleError) as error:
        # numba says "no locator available" when no cache directory is writable, and passes on what the
        # file system says when it cannot save.
        _log.debug("kernel %s is compiled without a cache: %s", name, error)
        return cast("_F", njit(signature, nogil=True)(function))
