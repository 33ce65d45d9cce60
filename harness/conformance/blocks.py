"""Random blocks of any of ggml's types, whose values are of a given size."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from firstdiff.model import quants
from firstdiff.model.block_layouts import LAYOUTS
from firstdiff.model.gguf_writing import Tensor
from firstdiff.model.quants import BY_NAME
from firstdiff.model.rounding import round_to

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
    layout = LAYOUTS.get(kind)
    if kind == "MXFP4":
        raw[:, 0] = rng.integers(*EXPONENTS, len(raw))
    elif kind == "NVFP4":
        raw[:, :4] = rng.integers(8, 56, (len(raw), 4))  # E4M3 without a sign, from 2 ** -6 to 1
    elif kind == "IQ1_M":
        _scaled_iq1_m(raw, size)
    else:
        places = [SCALE[kind]] if layout is None else [at for at in (layout.d, layout.m) if at is not None]
        for at in places:
            _put(raw, at, np.float32(1))
        values = quants.dequantize(raw.reshape(-1), of)
        unit = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
        scale = SUBNORMAL if tiny else size / unit
        for at in places:
            _put(raw, at, (scale * rng.uniform(0.5, 1.5, len(raw))).astype(np.float32))
    return Tensor(of, shape, raw.reshape(-1))


def has_half_scales(kind: str) -> bool:
    """Whether blocks of a type have a scale in float16, which can be subnormal."""
    layout = LAYOUTS.get(kind)
    return kind in SCALE or (layout is not None and layout.d is not None and not layout.byte)


def _plain(x: npt.NDArray[np.float32], kind: str) -> Tensor:
    if kind == "BF16":
        raw = np.ascontiguousarray(round_to(x, "bf16"), np.float32).view(np.uint32) >> 16
        return Tensor(BY_NAME[kind], x.shape, raw.astype(np.uint16).reshape(-1).view(np.uint8))
    return Tensor.of(x.astype(np.float16) if kind == "F16" else x)


def _put(raw: npt.NDArray[np.uint8], at: int, scale: npt.NDArray[np.float32] | np.float32) -> None:
    raw[:, at : at + 2] = np.broadcast_to(scale, len(raw)).astype(np.float16).view(np.uint8).reshape(-1, 2)


def _scaled_iq1_m(raw: npt.NDArray[np.uint8], size: float) -> None:
    """The scale of a block of IQ1_M: four bits of it in the upper bits of each of four 16-bit words of scales."""
    bits = int(np.array([size / 4], np.float16).view(np.uint16)[0])
    words = np.ascontiguousarray(raw[:, 48:56]).view("<u2")
    words &= np.uint16(0x0FFF)
    for i in range(4):
        words[:, i] |= np.uint16((bits >> (4 * i) & 15) << 12)
    raw[:, 48:56] = words.view(np.uint8)
