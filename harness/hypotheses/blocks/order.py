"""Faults of order: which byte and which of its bits an element's code is taken from, and where it is written."""

from __future__ import annotations

import numpy as np

from firstdiff.hypotheses.blocks.ways import (
    FIFTHS,
    K45,
    K_NIBBLES,
    LANES,
    NIBBLES,
    SIXTEENTHS,
    TABLES,
    BlockFault,
    K,
    both,
    codes_from,
    groups,
    low,
    low_from,
    moved,
    paired,
    way,
    written,
)

FIRST_HALF, LOW_OF_32, LOW_OF_64 = np.arange(256) < 128, np.arange(32) < 16, np.arange(256) % 64 < 32  # noqa: PLR2004
FIRST_OF_128 = np.arange(256) % 128 < 32  # noqa: PLR2004
HALF_MAJOR = [8 * (g // 8) + 4 * (g % 2) + g % 8 // 2 for g in range(16)]
"""Scales counted over a half's first 16 lanes, then over its second 16: sub-block g takes this one's."""
PLANE_MAJOR = [8 * (g // 8) + 2 * (g % 4) + g % 8 // 4 for g in range(16)]
"""The reverse of that."""

ORDER: tuple[BlockFault, ...] = (
    BlockFault(
        "nibble-order",
        "the two nibbles of a byte taken for other elements than they are",
        "take byte i's low nibble for element i of its run and the high one for the element a run's bytes further",
        (
            way("pairs (2i, 2i + 1)", (*NIBBLES, *TABLES), layout=low(width=1)),
            way("pairs (2i + 1, 2i)", (*NIBBLES, *TABLES), layout=low(width=1, shifts=(4, 0))),
            way("pairs (2i, 2i + 1), high bits with them", FIFTHS, values=paired(1, 2)),
            way("runs of 16 bytes, as in Q4_0", (*K_NIBBLES, "NVFP4"), layout=low(width=16)),
            way("runs of 32 bytes, as in Q4_K", ("Q6_K", "IQ4_XS"), layout=low(width=32)),
            way("all low nibbles before all high ones", ("NVFP4",), layout=low(width=32)),
            way("runs of 64 bytes, as in Q6_K", K45, layout=low(width=64)),
            way("all low nibbles before all high ones", (*K_NIBBLES, "IQ4_XS"), layout=low(width=128)),
        ),
    ),
    BlockFault(
        "high-nibble-stride",
        "the high nibble's element one behind the low nibble's, in place of 32 (Q6_K: 64)",
        "write the high nibble of byte l to element l + 32 of its 64 (Q6_K: l + 64 of its 128)",
        (
            way("nibbles in sequence", K_NIBBLES, layout=low(width=1)),
            way("nibbles and high bits in sequence", ("Q5_K", "Q6_K"), layout=both(1, 1)),
            way("values in sequence, each with its scale", K45, values=paired(4, 2)),
            way("values in sequence, each with its scale", ("Q6_K",), values=paired(2, 4)),
        ),
    ),
    BlockFault(
        "nibble-swapped",
        "the high nibble of each byte taken before the low one",
        "take the low nibble for the first element and the high one for the second",
        (
            way("nibbles alone", (*NIBBLES, *K_NIBBLES, *TABLES), layout=low(shifts=(4, 0))),
            way("high bits with them", FIFTHS, values=moved((1, 0))),
            way("values with their scales", K45, values=moved((1, 0, 3, 2, 5, 4, 7, 6))),
        ),
    ),
    BlockFault(
        "lanes",
        "codes multiplied by the scales of other lanes",
        "take 32 bytes at a time, their codes from the lowest bits up, and a scale for each 16 of them",
        (
            way("four codes of a byte in sequence", LANES, layout=low(width=1)),
            way("codes and high bits in sequence", ("Q3_K",), layout=both(1, 1)),
            way("codes and high bits, 16 bytes at a time", ("Q3_K",), layout=both(16, 16)),
            way("4 bytes for each 16 codes", LANES, layout=low(width=4)),
            way("16 bytes at a time", LANES, layout=low(width=16)),
            way("64 bytes at a time", LANES, layout=low(width=64)),
            way("shifts of 6, 4, 2, 0", LANES, layout=low(shifts=(6, 4, 2, 0))),
            way("scales of a half's first 16 lanes before those of its second", SIXTEENTHS, fields=groups(HALF_MAJOR)),
            way("scales in the order of shifts within 16 lanes", SIXTEENTHS, fields=groups(PLANE_MAJOR)),
        ),
    ),
    BlockFault(
        "block-order",
        "the two halves of a block exchanged",
        "write the first 128 values of a block first",
        (
            way("values", (*K, "IQ4_XS", "TQ1_0", "TQ2_0"), values=moved((1, 0))),
            way("codes, not their scales", (*K, "IQ4_XS"), fields=codes_from((1, 0))),
            way("low bits of codes", ("Q3_K", "Q5_K", "Q6_K"), fields=low_from((1, 0))),
        ),
    ),
    BlockFault(
        "codes-repeated",
        "the pointer to the codes not moved on within a block",
        "move the pointer on after each run of the block",
        (
            way("low bits", ("Q2_K", "Q3_K", "Q6_K"), fields=low_from((0, 0))),
            way("low bits", K45, fields=low_from((0, 0, 0, 0))),
            way("codes", ("IQ4_XS",), fields=low_from([0] * 8)),
            way("codes", ("NVFP4",), fields=low_from([0] * 4)),
            way("codes", ("TQ2_0",), fields=low_from((0, 0))),
            way("low and high bits", ("Q6_K",), fields=codes_from((0, 0))),
            way("ql + 32 read as ql", ("Q6_K",), fields=low_from([0, 0, 2, 2, 4, 4, 6, 6])),
            way("q + 16 read as q", LANES, fields=low_from([g // 2 * 2 for g in range(16)])),
        ),
    ),
    BlockFault(
        "block-partial",
        "only a part of each block written, the rest left zero",
        "write every element of a block",
        (
            way("only the low nibbles' values", (*NIBBLES, "IQ4_NL", "MXFP4"), values=written(LOW_OF_32)),
            way("only the low nibbles' values", ("IQ4_XS",), values=written(np.tile(LOW_OF_32, 8))),
            way("only the low nibbles' values", ("NVFP4",), values=written(np.arange(64) % 16 < 8)),  # noqa: PLR2004
            way("the first half", (*K, "IQ4_XS", "TQ1_0", "TQ2_0"), values=written(FIRST_HALF)),
            way("the first 32 of each 128", ("Q6_K",), values=written(FIRST_OF_128)),
            way("only the low nibbles' values", K45, values=written(LOW_OF_64)),
        ),
    ),
)
