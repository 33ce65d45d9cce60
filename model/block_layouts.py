"""Where each type of quantised blocks keeps what: those whose values are a scale times what a code stands for.

Source: the structs of ggml/src/ggml-common.h and ``dequantize_row_*`` of ggml/src/ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from firstdiff.model.blocks import Bytes, Codes, Digits, Fields, Floats, Layout, Plane, looked_up
from firstdiff.model.few_bits import E2M1, E8M0, NON_LINEAR, UE4M3
from firstdiff.model.quants import QuantType


def _unpack_q2_k(packed: Bytes) -> tuple[Codes, Codes | None]:
    return packed & 15, packed >> 4


def _unpack_q3_k(packed: Bytes) -> tuple[Codes, Codes | None]:
    """16 scales of 6 bits: nibbles in 8 bytes, their upper 2 bits in 4, and 32 subtracted."""
    low, high = Plane(0, 8, bits=4, width=8), Plane(8, 4, bits=2, width=4)
    return (low.read(packed) | high.read(packed) << 4) - np.int8(32), None


def _unpack_q4_k(packed: Bytes) -> tuple[Codes, Codes | None]:
    """8 scales and 8 minima of 6 bits (``get_scale_min_k4``)."""
    one, two, three = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.hstack([one & 63, three & 15 | one >> 6 << 4])
    mins = np.hstack([two & 63, three >> 4 | two >> 6 << 4])
    return scales, mins


def _unpack_q6_k(packed: Bytes) -> tuple[Codes, Codes | None]:
    return packed.view(np.int8), None


def _unpack_iq4_xs(packed: Bytes) -> tuple[Codes, Codes | None]:
    """8 scales of 6 bits: their upper 2 bits in 2 bytes, nibbles in 4, and 32 subtracted."""
    high, low = Plane(0, 2, bits=2, width=1), Plane(2, 4, bits=4, width=1)
    return (low.read(packed) | high.read(packed) << 4) - np.int8(32), None


def _e8m0(byte: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> Floats:
    return E8M0[byte]


LAYOUTS: dict[str, Layout] = {
    "Q4_0": Layout(d=0, low=Plane(2, 16, bits=4, width=16), offset=8),
    "Q4_1": Layout(d=0, m=2, low=Plane(4, 16, bits=4, width=16)),
    "Q5_0": Layout(d=0, high=Plane(2, 4, bits=1, width=1), low=Plane(6, 16, bits=4, width=16), offset=16),
    "Q5_1": Layout(d=0, m=2, high=Plane(4, 4, bits=1, width=1), low=Plane(8, 16, bits=4, width=16)),
    "Q8_0": Layout(d=0, low=Plane(2, 32, bits=8, width=32)),
    "Q2_K": Layout(packed=(0, 16), unpack=_unpack_q2_k, low=Plane(16, 64, bits=2, width=32), d=80, m=82),
    "Q3_K": Layout(
        high=Plane(0, 32, bits=1, width=32),
        low=Plane(32, 64, bits=2, width=32),
        packed=(96, 108),
        unpack=_unpack_q3_k,
        d=108,
        offset=4,
    ),
    "Q4_K": Layout(d=0, m=2, packed=(4, 16), unpack=_unpack_q4_k, low=Plane(16, 128, bits=4, width=32)),
    "Q5_K": Layout(
        d=0,
        m=2,
        packed=(4, 16),
        unpack=_unpack_q4_k,
        high=Plane(16, 32, bits=1, width=32),
        low=Plane(48, 128, bits=4, width=32),
    ),
    "Q6_K": Layout(
        low=Plane(0, 128, bits=4, width=64),
        high=Plane(128, 64, bits=2, width=32),
        packed=(192, 208),
        unpack=_unpack_q6_k,
        d=208,
        offset=32,
    ),
    "Q1_0": Layout(d=0, low=Plane(2, 16, bits=1, width=1), table=np.array([-1, 1], np.float32)),
    "Q2_0": Layout(d=0, low=Plane(2, 16, bits=2, width=1), offset=1),
    "IQ4_NL": Layout(d=0, low=Plane(2, 16, bits=4, width=16), table=NON_LINEAR),
    "IQ4_XS": Layout(d=0, packed=(2, 8), unpack=_unpack_iq4_xs, low=Plane(8, 128, bits=4, width=16), table=NON_LINEAR),
    "TQ1_0": Layout(low=Digits(((0, 32, 5), (32, 16, 5), (48, 4, 4))), d=52, offset=1),
    "TQ2_0": Layout(low=Plane(0, 64, bits=2, width=32), d=64, offset=1),
    "MXFP4": Layout(d=0, byte=True, half=_e8m0, low=Plane(1, 16, bits=4, width=16), table=E2M1),
    "NVFP4": Layout(d=None, packed=(0, 4), unpack=looked_up(UE4M3), low=Plane(4, 32, bits=4, width=8), table=E2M1),
}
"""The types whose values are a scale times what a code stands for. Those with grids are in
:mod:`firstdiff.model.grid_blocks`."""


def fields(raw: Bytes, kind: QuantType) -> Fields:
    """Take whole blocks apart, uint8 [block, byte], of a type in `LAYOUTS`. Each block stands for itself."""
    return LAYOUTS[kind.name].fields(raw)
