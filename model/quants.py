"""ggml's tensor types: their block sizes, their values as float32, and how ggml rounds what they multiply.

Block layouts are those of ggml/src/ggml-common.h; values follow ggml's ``dequantize_row_*`` to the bit.
numba is imported by the first :func:`dequantize` that needs a kernel, not by this module.
"""

from __future__ import annotations

import platform
import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from firstdiff.model.errors import ModelError
from firstdiff.model.narrowing import narrowed
from firstdiff.model.workers import jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QuantType:
    """One tensor type of ggml.

    Attributes
    ----------
    name
        ggml's name in capitals, as the ``gguf`` package spells it.
    id
        The number of the type in a GGUF file (``enum ggml_type``).
    block
        Elements a block (``ggml_blck_size``).
    nbytes
        Bytes a block (``ggml_type_size``).
    activations
        The type that ggml's CPU backend rounds activations to before a product with a weight of this type
        (``type_traits_cpu[].vec_dot_type`` in ggml/src/ggml-cpu/ggml-cpu.c); None for a type that weights cannot have.
    """

    name: str
    id: int
    block: int
    nbytes: int
    activations: str | None = None


# Numbers 4, 5, 31 to 33 and 36 to 38 belonged to types that ggml has removed.
TYPES: dict[int, QuantType] = {
    number: QuantType(name, number, block, nbytes, activations)
    for name, number, block, nbytes, activations in [
        ("F32", 0, 1, 4, "F32"),
        ("F16", 1, 1, 2, "F16"),
        ("Q4_0", 2, 32, 18, "Q8_0"),
        ("Q4_1", 3, 32, 20, "Q8_1"),
        ("Q5_0", 6, 32, 22, "Q8_0"),
        ("Q5_1", 7, 32, 24, "Q8_1"),
        ("Q8_0", 8, 32, 34, "Q8_0"),
        ("Q8_1", 9, 32, 36, None),
        ("Q2_K", 10, 256, 84, "Q8_K"),
        ("Q3_K", 11, 256, 110, "Q8_K"),
        ("Q4_K", 12, 256, 144, "Q8_K"),
        ("Q5_K", 13, 256, 176, "Q8_K"),
        ("Q6_K", 14, 256, 210, "Q8_K"),
        ("Q8_K", 15, 256, 292, None),
        ("IQ2_XXS", 16, 256, 66, "Q8_K"),
        ("IQ2_XS", 17, 256, 74, "Q8_K"),
        ("IQ3_XXS", 18, 256, 98, "Q8_K"),
        ("IQ1_S", 19, 256, 50, "Q8_K"),
        ("IQ4_NL", 20, 32, 18, "Q8_0"),
        ("IQ3_S", 21, 256, 110, "Q8_K"),
        ("IQ2_S", 22, 256, 82, "Q8_K"),
        ("IQ4_XS", 23, 256, 136, "Q8_K"),
        ("I8", 24, 1, 1, None),
        ("I16", 25, 1, 2, None),
        ("I32", 26, 1, 4, None),
        ("I64", 27, 1, 8, None),
        ("F64", 28, 1, 8, None),
        ("IQ1_M", 29, 256, 56, "Q8_K"),
        ("BF16", 30, 1, 2, "BF16"),
        ("TQ1_0", 34, 256, 54, "Q8_K"),
        ("TQ2_0", 35, 256, 66, "Q8_K"),
        ("MXFP4", 39, 32, 17, "Q8_0"),
        ("NVFP4", 40, 64, 36, "Q8_0"),
        ("Q1_0", 41, 128, 18, "Q8_0"),
        ("Q2_0", 42, 64, 18, "Q8_0"),
    ]
}
BY_NAME: dict[str, QuantType] = {kind.name: kind for kind in TYPES.values()}

SUPPORTED: frozenset[str] = frozenset(kind.name for kind in TYPES.values() if kind.activations is not None)
"""The types that weights can have."""

# Output elements beyond which a second thread pays: 1 Mi of them take one thread about 0.7 ms, and a thread
# starts in about 0.1 ms. More than two threads only wait for memory.
_SPLIT = 1 << 20


def dequantize(raw: Bytes, kind: QuantType, out: Floats | None = None) -> Floats:
    """Return the values of whole blocks as float32, equal to the bit to ggml's ``to_float``.

    Parameters
    ----------
    raw
        Whole blocks: uint8, one-dimensional, contiguous; a read-only mapping of a file is fine.
    kind
        The type of the blocks, one of `SUPPORTED`.
    out
        Where to write: float32, one-dimensional, contiguous, one place an element. Allocated if not given,
        except for F32, which is then a view of `raw`, read-only if `raw` is, where alignment allows.

    Raises
    ------
    ModelError
        If `kind` is not supported, or if `raw` does not end with a block.
    ValueError
        If `raw` or `out` is not an array as described.
    """
    _check(raw, kind)
    count = raw.size // kind.nbytes * kind.block
    if out is None:
        if kind.name == "F32" and raw.__array_interface__["data"][0] % 4 == 0:
            return raw.view(np.float32)
        out = np.empty(count, np.float32)
    elif out.shape != (count,) or out.dtype != np.float32 or not out.flags.carray:
        raise ValueError(
            f"out must be a writable, contiguous float32 array of shape ({count},), not {out.dtype} {out.shape}",
        )
    if kind.name == "F32":
        out.view(np.uint8)[:] = raw
        return out
    kernel = _kernel(kind.name)
    if count <= _SPLIT or jobs() == 1:
        kernel(raw, out)
        return out
    half = raw.size // kind.nbytes // 2  # blocks
    second = threading.Thread(target=kernel, args=(raw[half * kind.nbytes :], out[half * kind.block :]))
    second.start()
    kernel(raw[: half * kind.nbytes], out[: half * kind.block])
    second.join()
    return out


def minima(raw: Bytes, kind: QuantType) -> Floats:
    """Return the minimum of each Q4_1 or Q5_1 block, float32 [blocks] (``block_q4_1.m``, ``block_q5_1.m``).

    Raises
    ------
    ModelError
        If `kind` has no such minimum, or if `raw` does not end with a block.
    """
    if kind.activations != "Q8_1":
        raise ModelError(f"type {kind.name} keeps no minimum a block; Q4_1 and Q5_1 do")
    _check(raw, kind)
    stored = raw.reshape(-1, kind.nbytes)[:, 2:4].copy()
    return stored.view(np.float16).astype(np.float32)[:, 0]


def round_activations(x: Floats, weight: QuantType) -> tuple[Floats, Floats | None]:
    """Round activations as ggml's CPU backend does before a product with a weight of this type.

    F16 and BF16 weights round to that type, Q4_1 and Q5_1 to Q8_1 blocks, other types of small blocks to Q8_0, types
    of blocks of 256 to Q8_K (``from_float`` of ``type_traits_cpu[weight].vec_dot_type``). x86-64 and aarch64 differ in
    one division, and the machine's own way is taken. Where ggml gives arbitrary codes to a block that holds
    NaN or an infinity, the whole block is NaN here.

    Parameters
    ----------
    x
        float32 [rows, n].
    weight
        The type of the weight, one of `SUPPORTED`.

    Returns
    -------
    rounded
        float32 [rows, n]: what the blocks stand for; `x` itself for F32.
    offsets
        For Q4_1 and Q5_1, float32 [rows, n / 32]: a Q8_1 block stores its sum s rounded to f16, and s misses
        the sum of its rounded values by this much. ggml's product is
        ``rounded @ values.T + offsets @ minima.T``. None for the other types.

    Raises
    ------
    ModelError
        If `weight` is not supported, or if n is no multiple of the block.
    """
    target = _rounded_to(weight)
    if x.shape[-1] % BY_NAME[target].block:
        raise ModelError(
            f"a product with a {weight.name} weight takes rows of a multiple of {BY_NAME[target].block} "
            f"values, not {x.shape[-1]}",
        )
    with np.errstate(all="ignore"):  # overflow to infinity and NaN are ggml's results too
        match target:
            case "F32":
                return x, None
            case "F16":
                return narrowed(x, "f16"), None
            case "BF16":
                return narrowed(x, "bf16"), None
            case "Q8_K":
                return _round_q8_k(x), None
            case _:
                rounded, offsets = _round_q8(x)
                return rounded, offsets if target == "Q8_1" else None


def _round_q8(x: Floats) -> tuple[Floats, Floats]:
    """Quantise to Q8_0 or Q8_1 and back (``quantize_row_q8_0`` and ``_q8_1``, ggml-cpu/arch/*/quants.c)."""
    blocks = x.reshape(len(x), -1, 32)  # [row, block, 32]
    extreme = np.abs(blocks).max(axis=2, keepdims=True)
    extreme[np.isinf(extreme)] = np.nan
    d = extreme / np.float32(127)
    if platform.machine().lower() in {"aarch64", "arm64"}:
        inverse = np.where(d == 0, np.float32(0), 1 / d)
    else:
        inverse = np.where(extreme == 0, np.float32(0), 127 / extreme)
    codes = np.rint(blocks * inverse)
    # Below 4e-37 the inverse is infinite: x86 then stores -128 for every value, and d is 0 in f16.
    codes[~np.isfinite(codes)] = -128
    codes += np.float32(0)  # an integer has no -0
    stored = d.astype(np.float16).astype(np.float32)
    total = codes.sum(axis=2, keepdims=True)  # exact: 32 integers of 8 bits
    s = (d * total).astype(np.float16).astype(np.float32)
    # stored * total is exact in float32 (11 bits times 13), so this rounds once.
    return (codes * stored).reshape(x.shape), (s - stored * total)[:, :, 0]


def _round_q8_k(x: Floats) -> Floats:
    """Quantise to Q8_K and back (``quantize_row_q8_K_ref``)."""
    blocks = x.reshape(len(x), -1, 256)  # [row, block, 256]
    first = np.abs(blocks).argmax(axis=2, keepdims=True)
    extreme = np.take_along_axis(blocks, first, axis=2)  # with its sign; NaN if there is one
    inverse = np.float32(-127) / extreme
    codes = np.minimum(np.rint(blocks * inverse), np.float32(127)) + np.float32(0)
    # Below 4e-37 the inverse is infinite; ggml's bit trick for rounding then yields 0.
    codes[~np.isfinite(codes)] = 0
    d = np.where(extreme == 0, np.float32(0), 1 / inverse)
    return (codes * d).reshape(x.shape)


def _rounded_to(kind: QuantType) -> str:
    """Return what activations are rounded to for a type."""
    if kind.activations is None:
        raise ModelError(f"type {kind.name} is not supported; supported are {', '.join(sorted(SUPPORTED))}")
    return kind.activations


def _check(raw: Bytes, kind: QuantType) -> None:
    _rounded_to(kind)
    if raw.ndim != 1 or raw.dtype != np.uint8 or not raw.flags.c_contiguous:
        raise ValueError(f"raw must be a contiguous uint8 array of one dimension, not {raw.dtype} {raw.shape}")
    if raw.size % kind.nbytes:
        raise ModelError(f"{raw.size} bytes of {kind.name} are no whole number of blocks of {kind.nbytes} bytes")


@cache
def _kernel(name: str) -> Callable[[Bytes, Floats], None]:
    from firstdiff.model import kernels

    return kernels.load(name)
