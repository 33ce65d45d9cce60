"""Blocks whose codes are entries of a grid, taken apart: IQ1, IQ2 and IQ3.

As in :mod:`firstdiff.model.blocks`, what was read is a record that can be changed. For values alone,
`firstdiff.model.quants.dequantize` is the faster way.

Source: the structs of ggml/src/ggml-common.h and ``dequantize_row_*`` of ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstdiff.model.blocks import Bytes, Codes, Floats, Half, Plane, half
from firstdiff.model.grids import DELTA, eight_signs, grid
from firstdiff.model.quants import QuantType


@dataclass(frozen=True, slots=True)
class GridFields:
    """What blocks hold. ``value = d * (added + times * scale) * factor * (number of the entry + delta) * sign``.

    Attributes
    ----------
    d
        Scale of each block, float32 [block].
    entries
        Which entry of the grid, [block, entry].
    grid
        Whose grid: see :func:`firstdiff.model.grids.grid`.
    scales
        The integers of each sub-block, [block, sub-block].
    added, times, factor
        Constants of the formula above.
    signs
        The signs of each eight values, a bit each, lowest first, [block, byte]; None for types without.
    deltas
        What is added to the numbers of an entry, float32 [block, entry]; None for types without.
    """

    d: Floats
    entries: Codes
    grid: str
    scales: Codes
    added: float
    times: float
    factor: float
    signs: Bytes | None = None
    deltas: Floats | None = None

    def values(self) -> Floats:
        """Values, float32 [block, value]; in ggml's order of operations, so that they are equal to ggml's."""
        added, times, factor = (np.float32(x) for x in (self.added, self.times, self.factor))
        numbers = grid(self.grid)[self.entries]  # [block, entry, number]
        if self.deltas is not None:
            numbers = numbers + self.deltas[:, :, None]
        with np.errstate(all="ignore"):  # what a damaged or misread scale holds may be anything
            scale = self.d[:, None] * (added + times * self.scales.astype(np.float32)) * factor
            y = numbers.reshape(*scale.shape, 256 // scale.shape[1]) * scale[:, :, None]
        y = y.reshape(len(y), 256)
        if self.signs is None:
            return y
        negative = np.unpackbits(self.signs, axis=1, bitorder="little").astype(bool)
        return np.where(negative, -y, y)


Read = Callable[[Bytes, Floats], GridFields]


def _words(raw: Bytes, kind: str) -> npt.NDArray[np.unsignedinteger]:
    """Little-endian words of bytes [block, byte]."""
    words: npt.NDArray[np.unsignedinteger] = np.ascontiguousarray(raw).view(kind)
    return words


def _nibbles(raw: Bytes) -> Codes:
    return Plane(0, raw.shape[1], bits=4, width=1).read(raw)


def _four_signs(words: npt.NDArray[np.unsignedinteger]) -> tuple[Bytes, Codes]:
    """Words of four times seven signs and a scale: the signs [block, 4 * word], the scales [block, word]."""
    seven = words[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127
    return eight_signs(seven.reshape(len(words), 4 * words.shape[1])), (words >> 28).astype(np.uint8)


def _iq2_xxs(raw: Bytes, d: Floats) -> GridFields:
    runs = raw[:, 2:66].reshape(len(raw), 8, 8)  # four entries, and a word of signs and scale
    signs, scales = _four_signs(_words(runs[:, :, 4:], "<u4")[:, :, 0])
    entries = runs[:, :, :4].reshape(len(raw), 32).astype(np.uint16)
    return GridFields(d, entries, "IQ2_XXS", scales, 0.5, 1, 0.25, signs)


def _iq2_xs(raw: Bytes, d: Floats) -> GridFields:
    words = _words(raw[:, 2:66], "<u2")
    entries = (words & 511).astype(np.uint16)
    return GridFields(d, entries, "IQ2_XS", _nibbles(raw[:, 66:74]), 0.5, 1, 0.25, eight_signs(words >> 9))


def _iq2_s(raw: Bytes, d: Floats) -> GridFields:
    high = Plane(0, 8, bits=2, width=1).read(raw[:, 66:74]).astype(np.uint16)
    entries = raw[:, 2:34] | high << 8
    return GridFields(d, entries, "IQ2_S", _nibbles(raw[:, 74:82]), 0.5, 1, 0.25, np.ascontiguousarray(raw[:, 34:66]))


def _iq3_xxs(raw: Bytes, d: Floats) -> GridFields:
    signs, scales = _four_signs(_words(raw[:, 66:98], "<u4"))
    return GridFields(d, raw[:, 2:66].astype(np.uint16), "IQ3_XXS", scales, 0.5, 1, 0.5, signs)


def _iq3_s(raw: Bytes, d: Floats) -> GridFields:
    high = Plane(0, 8, bits=1, width=1).read(raw[:, 66:74]).astype(np.uint16)
    entries, signs = raw[:, 2:66] | high << 8, np.ascontiguousarray(raw[:, 74:106])
    return GridFields(d, entries, "IQ3_S", _nibbles(raw[:, 106:110]), 1, 2, 1, signs)


def _deltas(negative: npt.NDArray[np.integer]) -> Floats:
    return np.where(negative, np.float32(-DELTA), np.float32(DELTA))


def _iq1_s(raw: Bytes, d: Floats) -> GridFields:
    words = _words(raw[:, 34:50], "<u2")
    high = (words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(len(raw), 32)
    entries = (raw[:, 2:34] | high << 8).astype(np.uint16)
    deltas = np.repeat(_deltas(words >> 15), 4, axis=1)
    return GridFields(d, entries, "IQ1", (words >> 12 & 7).astype(np.uint8), 1, 2, 1, deltas=deltas)


def _iq1_m(raw: Bytes, d: Floats) -> GridFields:
    extra = _nibbles(raw[:, 32:48]).astype(np.uint16)
    words = _words(raw[:, 48:56], "<u2")
    scales = (words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(len(raw), 16)
    entries = raw[:, :32] | (extra & 7) << 8
    return GridFields(d, entries, "IQ1", scales.astype(np.uint8), 1, 2, 1, deltas=_deltas(extra & 8))


def _first_bytes(raw: Bytes) -> npt.NDArray[np.uint16]:
    return raw[:, :2].copy().view("<u2")[:, 0]


def _top_bits(raw: Bytes) -> npt.NDArray[np.uint16]:
    """The block scale of IQ1_M: the topmost four bits of each of four words."""
    words = _words(raw[:, 48:56], "<u2").astype(np.uint16) >> 12
    return (words[:, 0] | words[:, 1] << 4 | words[:, 2] << 8 | words[:, 3] << 12).astype(np.uint16)


_READ: dict[str, Read] = {
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
}
GRIDS = tuple(_READ)
"""The types whose codes are entries of a grid."""


def grid_fields(raw: Bytes, kind: QuantType, number: Half = half) -> GridFields:
    """Take whole blocks apart, uint8 [block, byte], of a type in `GRIDS`; `number` reads the 16 bits of the scale."""
    return _READ[kind.name](raw, number((_top_bits if kind.name == "IQ1_M" else _first_bytes)(raw)))
