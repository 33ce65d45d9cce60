"""Faults in reading codes: their sign, their offset, their high bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from firstdiff.hypotheses.blocks.ways import (
    FIFTHS,
    K_NIBBLES,
    NIBBLES,
    BlockFault,
    high,
    high_bits,
    high_from,
    low,
    no_high,
    offset,
    summed,
    way,
)
from firstdiff.model.blocks import Fields

FIRST = tuple(range(16))


def unsigned(f: Fields) -> Fields:
    """Signed bytes as unsigned ones."""
    return replace(f, low=f.low.view(np.uint8))


def excess_128(f: Fields) -> Fields:
    """Signed bytes as unsigned ones less 128."""
    return replace(f, low=(f.low.view(np.uint8) ^ 0x80).view(np.int8))


def twos_complement(f: Fields) -> Fields:
    """The topmost bit of a code as its sign."""
    return replace(f, low=f.unsigned ^ np.int8(f.offset), high=None)


def inverted(f: Fields) -> Fields:
    """High bits of the other meaning."""
    assert f.high is not None
    return replace(f, high=f.high ^ np.int8(1))


def not_moved_up(f: Fields) -> Fields:
    """High bits joined where they lie, at the bottom."""
    assert f.high is not None
    return replace(f, low=f.low | f.high, high=None)


def weighed_by_mask(f: Fields) -> Fields:
    """``qh[l] & mask`` added as it is, where its being set adds 16."""
    assert f.high is not None
    masks = np.repeat(1 << np.arange(8, dtype=np.int16), 32)
    return replace(f, low=f.low + f.high * masks, high=None)


SIGNS: tuple[BlockFault, ...] = (
    BlockFault(
        "nibble-signed",
        "the topmost bit of a code taken for its sign",
        "take codes as unsigned, shift them down unsigned, then subtract the offset",
        (
            way("two's complement in place of an offset", ("Q4_0", "Q5_0", "Q6_K"), fields=twos_complement),
            way("the high nibble shifted down with its sign", (*NIBBLES, *K_NIBBLES), layout=low(arithmetic=True)),
            way(
                "the same, high bits added",
                (*FIFTHS, "Q5_K", "Q6_K"),
                layout=low(arithmetic=True),
                fields=summed,
            ),
        ),
    ),
    BlockFault(
        "code-unsigned",
        "signed bytes taken as unsigned",
        "take the codes of Q8_0 as int8",
        (
            way("0 to 255", ("Q8_0",), fields=unsigned),
            way("less 128", ("Q8_0",), fields=excess_128),
        ),
    ),
    BlockFault(
        "offset-missing",
        "the offset of the codes not subtracted, or another one",
        "subtract 8 (Q4_0), 16 (Q5_0), 32 (Q6_K), 4 (Q3_K) or 1 (Q2_0, TQ1_0, TQ2_0) from the codes",
        (
            way("none", ("Q4_0", "Q5_0", "Q6_K", "Q3_K", "Q2_0", "TQ1_0", "TQ2_0"), fields=offset(0)),
            way("8, as in Q4_0", ("Q5_0",), fields=offset(8)),
            way("16, as in Q5_0", ("Q6_K",), fields=offset(16)),
        ),
    ),
    BlockFault(
        "offset-extra",
        "an offset subtracted from codes that have none",
        "subtract nothing from the codes of a type with minima",
        (
            way("8, as in Q4_0", ("Q4_1", "Q4_K"), fields=offset(8)),
            way("16, as in Q5_0", ("Q5_1", "Q5_K"), fields=offset(16)),
        ),
    ),
)

HIGH_BITS: tuple[BlockFault, ...] = (
    BlockFault(
        "high-bits",
        "the high bits of codes left out, or those of other elements",
        "join each code with its own high bits: qh bit i is element i's (Q5_0, Q5_1); in K types, byte l of qh or"
        " hmask serves element l of each run of 32, from the lowest bits up",
        (
            way("left out", (*FIFTHS, "Q5_K", "Q6_K", "Q3_K"), fields=no_high),
            way("not moved up", (*FIFTHS, "Q5_K", "Q6_K"), fields=not_moved_up),
            *(
                way(name, FIFTHS, fields=high_bits(order))
                for name, order in (
                    ("bits 2i and 2i + 1 for i and i + 16", [2 * i for i in FIRST] + [2 * i + 1 for i in FIRST]),
                    ("bits i and i + 16 for 2i and 2i + 1", [i // 2 + 16 * (i % 2) for i in range(32)]),
                    ("the first 16 bits for both halves", [*FIRST, *FIRST]),
                    ("the halves exchanged", [(i + 16) % 32 for i in range(32)]),
                    ("the highest bit of each byte first", [i ^ 7 for i in range(32)]),
                    ("qh >> (j + 12) moved up by 4 once more", [*FIRST, *(j + 12 for j in FIRST)]),
                    ("qh >> j & 0x10 and qh >> (j + 16) & 0x10", [*range(4, 32), *[-1] * 4]),
                    ("qh >> (j + 16) & 0x10", [*FIRST, *range(20, 32), *[-1] * 4]),
                )
            ),
            *(
                way(name, ("Q5_K",), layout=high(shifts=shifts))
                for name, shifts in (
                    ("the low nibble's bit for both", (0, 0, 2, 2, 4, 4, 6, 6)),
                    ("the masks not moved on", (0, 1, 0, 1, 0, 1, 0, 1)),
                    ("the masks moved on by 1 in place of 2", (0, 1, 1, 2, 2, 3, 3, 4)),
                    ("those of the two nibbles exchanged", (1, 0, 3, 2, 5, 4, 7, 6)),
                    ("bits 0 to 3 for low nibbles, 4 to 7 for high ones", (0, 4, 1, 5, 2, 6, 3, 7)),
                )
            ),
            way("the mask added in place of 16", ("Q5_K",), fields=weighed_by_mask),
            way("the highest bit first", ("Q5_K", "Q3_K"), layout=high(shifts=(7, 6, 5, 4, 3, 2, 1, 0))),
            way("bits in sequence", ("Q5_K", "Q6_K", "Q3_K"), layout=high(width=1)),
            way("shifts of 6, 4, 2, 0", ("Q6_K",), layout=high(shifts=(6, 4, 2, 0))),
            way("shifts of 0, 4, 2, 6", ("Q6_K",), layout=high(shifts=(0, 4, 2, 6))),
            way("not shifted", ("Q6_K",), layout=high(shifts=(0, 0, 0, 0))),
            way("64 bytes at a time", ("Q6_K",), layout=high(width=64)),
            way("the first 32 bytes for both halves", ("Q6_K",), fields=high_from((0, 0))),
            way("those of the other 16 lanes", ("Q6_K",), fields=high_from([g ^ 1 for g in FIRST])),
            way("taken as always set", ("Q3_K",), fields=lambda f: offset(0)(no_high(f))),
            way("of the other meaning", ("Q3_K",), fields=inverted),
            way("the mask not moved on", ("Q3_K",), layout=high(shifts=(0,) * 8)),
            way("the mask started again at 128", ("Q3_K",), layout=high(shifts=(0, 1, 2, 3, 0, 1, 2, 3))),
        ),
    ),
)
