"""Faults of types of few bits: what their codes stand for, which elements these belong to, and scales of eight bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from firstdiff.hypotheses.blocks.ways import FP4, BlockFault, low, through, way
from firstdiff.model.blocks import Fields, Floats, Layout, looked_up
from firstdiff.model.few_bits import E2M1, E8M0, NON_LINEAR, UE4M3, float8

IQ4 = ("IQ4_NL", "IQ4_XS")
CODE = range(16)


def _scaled(by: float) -> Callable[[Fields], Fields]:
    """Every scale times a number."""

    def change(f: Fields) -> Fields:
        with np.errstate(over="ignore"):
            return replace(f, d=f.d * np.float32(by))

    return change


def _bytes_as(numbers: Floats) -> Callable[[Layout], Layout]:
    """The bytes of the scales, of the block or of its sub-blocks, stand for other numbers."""

    def change(where: Layout) -> Layout:
        if where.byte:
            return replace(where, half=lambda byte: numbers[byte])
        return replace(where, unpack=looked_up(numbers))

    return change


TABLE_FAULTS: tuple[BlockFault, ...] = (
    BlockFault(
        "code-table",
        "codes looked up in another type's table, or in none",
        "look each code up in its type's table: kvalues_iq4nl (IQ4_NL, IQ4_XS) or kvalues_mxfp4 (MXFP4, NVFP4); in"
        " Q1_0, a set bit is d and a clear bit -d",
        (
            way("q - 8, as in Q4_0", (*IQ4, *FP4), fields=through([q - 8 for q in CODE])),
            way("the code as a signed integer of four bits", (*IQ4, *FP4), fields=through([(q ^ 8) - 8 for q in CODE])),
            way("the code itself", (*IQ4, *FP4), fields=through(CODE)),
            way("the values of E2M1", IQ4, fields=through(E2M1.tolist())),
            way("the table of IQ4_NL", FP4, fields=through(NON_LINEAR.tolist())),
            way("without the sign", FP4, fields=through(np.abs(E2M1).tolist())),
            way(
                "the implicit 1 of the fraction left out",
                FP4,
                fields=through([0, 1, 0, 1, 0, 2, 0, 4, 0, -1, 0, -1, 0, -2, 0, -4]),
            ),
            way("0 and d", ("Q1_0",), fields=through((0, 1))),
            way("a set bit taken for -d", ("Q1_0",), fields=through((1, -1))),
        ),
    ),
    BlockFault(
        "digit-order",
        "the codes of a byte written to the wrong elements",
        "Q1_0 and Q2_0: the codes of a byte are neighbours, lowest bits first. TQ2_0: they are 32 elements apart."
        " TQ1_0: they are 32 apart in bytes 0 to 31, 16 in bytes 32 to 47, and 4 in qh; the first digit of a byte is 3"
        " * byte >> 8",
        (
            way("the codes of a byte as neighbours", ("TQ2_0",), layout=low(width=1)),
            way("the codes of a byte 16 elements apart", ("TQ2_0", "Q1_0", "Q2_0"), layout=low(width=16)),
            way("the codes of a byte 64 elements apart", ("TQ2_0",), layout=low(width=64)),
            way("the highest bits first", ("TQ2_0", "Q2_0"), layout=low(shifts=(6, 4, 2, 0))),
            way("the highest bits first", ("Q1_0",), layout=low(shifts=(7, 6, 5, 4, 3, 2, 1, 0))),
            way("the digits of a byte as neighbours", ("TQ1_0",), layout=low(neighbours=True)),
            way("the last digit first", ("TQ1_0",), layout=low(last_first=True)),
            way("byte / 3^n % 3 taken for digit n", ("TQ1_0",), layout=low(whole=True)),
        ),
    ),
    BlockFault(
        "scale-exponent",
        "an 8-bit scale converted wrongly",
        "MXFP4: the scale is 2^(e - 127) (E8M0). NVFP4: each scale is an unsigned float of 4 exponent bits (bias 7) and"
        " 3 fraction bits (UE4M3). ggml doubles the table of E2M1 and halves the scale: do both or neither",
        (
            way("twice as large: the table doubled, the scale not halved", FP4, fields=_scaled(2)),
            way("half as large: the scale halved, the table not doubled; or a bias of 8", FP4, fields=_scaled(0.5)),
            way("as E4M3", ("MXFP4",), layout=_bytes_as(UE4M3)),
            way("as E8M0", ("NVFP4",), layout=_bytes_as(E8M0)),
            way("as E5M2", FP4, layout=_bytes_as(float8(5, 15))),
            way("as an integer", FP4, layout=_bytes_as(np.arange(256, dtype=np.float32) / np.float32(2))),
        ),
    ),
)
