"""Random blocks of any of ggml's types, whose values are of a given size."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from firstdiff.model import quants
from firstdiff.model.block_layouts import LAYOUTS
from firstdiff.model.gguf_writing import Tensor
from firstdiff.model.quants import BY_NAME, QuantType
from firstdiff.model.rounding import bf16_bits

SCALE = {"IQ1_S": 0, "IQ2_XXS": 0, "IQ2_XS": 0, "IQ2_S": 0, "IQ3_XXS": 0, "IQ3_S": 0}
"""Where types with grids keep the scale of a block; IQ1_M spreads it over its sub-blocks' scales."""

SUBNORMAL = 2.0**-15
"""A float16 number below 2 ** -14, which has no implied bit."""

EXPONENTS = 118, 126
"""Scales of MXFP4, as powers of two less 127, that give numbers of some thousandths to some halves."""


def matrix(rng: np.random.Generator, kind: str, shape: tuple[int, int], size: float, *, tiny: bool = False) -> Tensor:
    """A random matrix of a type.

    Parameters
    ----------
    rng, kind, shape
        Where the bytes come from, the type, and the shape ``(out, in)``, whose rows are whole blocks.
    size
        The root mean square of its values, about.
    tiny
        Whether scales are subnormal, so that values are as small as they are.
    """
    of = BY_NAME[kind]
    if of.block == 1:
        return _plain(rng.standard_normal(shape, np.float32) * np.float32(size), kind)
    raw = rng.integers(0, 256, (prod(shape) // of.block, of.nbytes), np.uint8)
    if kind == "MXFP4":
        raw[:, 0] = rng.integers(*EXPONENTS, len(raw))
    elif kind == "NVFP4":
        raw[:, :4] = rng.integers(8, 56, (len(raw), 4))  # E4M3 without a sign, from 2 ** -6 to 1
    elif kind == "IQ1_M":
        _scaled_iq1_m(raw, 1.0)
        _scaled_iq1_m(raw, size / _size(raw, of))
    else:
        places = half_scales(kind)
        for at in places:
            _put(raw, at, np.float32(1))
        scale = SUBNORMAL if tiny else size / _size(raw, of)
        for at in places:
            _put(raw, at, (scale * rng.uniform(0.5, 1.5, len(raw))).astype(np.float32))
    return Tensor(of, shape, raw.reshape(-1))


def _size(raw: npt.NDArray[np.uint8], kind: QuantType) -> float:
    """The root mean square of what blocks hold."""
    return float(np.sqrt(np.square(quants.dequantize(raw.reshape(-1), kind), dtype=np.float64).mean()))


def half_scales(kind: str) -> tuple[int, ...]:
    """At which bytes of a block float16 scales are."""
    layout = LAYOUTS.get(kind)
    if layout is None:
        return (SCALE[kind],) if kind in SCALE else ()
    return () if layout.byte else tuple(at for at in (layout.d, layout.m) if at is not None)


def has_half_scales(kind: str) -> bool:
    """Whether blocks of a type have a scale in float16, which can be subnormal."""
    return bool(half_scales(kind))


def _plain(x: npt.NDArray[np.float32], kind: str) -> Tensor:
    if kind == "BF16":
        return Tensor(BY_NAME[kind], x.shape, bf16_bits(x).reshape(-1).view(np.uint8))
    return Tensor.of(x.astype(np.float16) if kind == "F16" else x)


def _put(raw: npt.NDArray[np.uint8], at: int, scale: npt.NDArray[np.float32] | np.float32) -> None:
    raw[:, at : at + 2] = np.broadcast_to(scale, len(raw)).astype(np.float16).view(np.uint8).reshape(-1, 2)


def _scaled_iq1_m(raw: npt.NDArray[np.uint8], scale: float) -> None:
    """The scale of a block of IQ1_M: four bits of it in the upper bits of each of four 16-bit words of scales."""
    bits = int(np.array([scale], np.float16).view(np.uint16)[0])
    words = np.ascontiguousarray(raw[:, 48:56]).view("<u2")
    words &= np.uint16(0x0FFF)
    for i in range(4):
        words[:, i] |= np.uint16((bits >> (4 * i) & 15) << 12)
    raw[:, 48:56] = words.view(np.uint8)
