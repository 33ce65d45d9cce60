"""Faults of scales: those of blocks and of their sub-blocks, exchanged, left out, of another sub-block, or misread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from firstdiff.hypotheses.blocks import numbers
from firstdiff.hypotheses.blocks.ways import (
    K45,
    K_MINIMA,
    SIXTEENTHS,
    WITH_HALF,
    WITH_MINIMA,
    BlockFault,
    K,
    grid_way,
    groups,
    ones,
    packing,
    parts,
    way,
)
from firstdiff.model.blocks import Fields
from firstdiff.model.grid_blocks import GRIDS, GridFields

G16, G8 = range(16), range(8)
GRIDS_16 = ("IQ1_M", "IQ2_XS", "IQ2_S")
"""Types with grids and a scale for each 16 numbers."""

GRIDS_32 = tuple(kind for kind in GRIDS if kind not in GRIDS_16)


def _grid_scales(order: Sequence[int]) -> Callable[[GridFields], GridFields]:
    return lambda f: replace(f, scales=parts(f.scales, order))


def _exchanged(f: Fields) -> Fields:
    assert f.m is not None
    return replace(f, d=f.m, m=f.d)


def _unsigned_scales(f: Fields) -> Fields:
    assert f.scales is not None
    return replace(f, scales=f.scales.view(np.uint8))


SCALES: tuple[BlockFault, ...] = (
    BlockFault(
        "scale-swapped",
        "d and dmin (or m) exchanged",
        "d comes first, dmin or m behind it",
        (way("both", WITH_MINIMA, fields=_exchanged),),
    ),
    BlockFault(
        "block-scale-missing",
        "the scale of the block not applied",
        "multiply by the block's scale: d, or e in MXFP4",
        (
            way("d", (*WITH_HALF, "MXFP4"), fields=ones("d")),
            way("e, and the table not doubled", ("MXFP4",), fields=lambda f: replace(f, d=np.full_like(f.d, 0.5))),
            grid_way("d", GRIDS, lambda f: replace(f, d=np.ones_like(f.d))),
            way("d and dmin", K_MINIMA, fields=ones("d", "m")),
        ),
    ),
    BlockFault(
        "sub-scale-missing",
        "the scales of sub-blocks not applied",
        "multiply each code by its sub-block's scale, and by d where the block has one; dmin by the sub-block's minimum"
        " ",
        (
            way("scales", (*K, "IQ4_XS", "NVFP4"), fields=ones("scales")),
            way(
                "scales, and the table not doubled",
                ("NVFP4",),
                fields=lambda f: replace(ones("scales")(f), d=np.full_like(f.d, 0.5)),
            ),
            way("scales and minima", K_MINIMA, fields=ones("scales", "mins")),
        ),
    ),
    BlockFault(
        "scale-index",
        "the scale of another sub-block",
        "sub-block g of a block takes scale g: 16 sub-blocks of 16 values (Q2_K, Q3_K, Q6_K, IQ1_M, IQ2_XS, IQ2_S), 8"
        " of 32 (Q4_K, Q5_K, IQ4_XS, IQ1_S, IQ2_XXS, IQ3) or 4 of 16 (NVFP4)",
        (
            *(
                way(name, SIXTEENTHS, fields=groups(order))
                for name, order in (
                    ("the next one's", [(g + 1) % 16 for g in G16]),
                    ("the one's before", [(g - 1) % 16 for g in G16]),
                    ("the first half's for both halves", [g % 8 for g in G16]),
                    ("each pair's first for both", [g // 2 * 2 for g in G16]),
                    ("one for each 32 values", [g // 2 for g in G16]),
                    ("each pair exchanged", [g ^ 1 for g in G16]),
                    ("moved on by 1 in place of 2", [8 * (g // 8) + g % 8 // 2 + g % 2 for g in G16]),
                )
            ),
            *(
                way(name, ("IQ4_XS",), fields=groups(order))
                for name, order in (
                    ("the next one's", [(g + 1) % 8 for g in G8]),
                    ("the one's before", [(g - 1) % 8 for g in G8]),
                    ("each pair's first for both", [g // 2 * 2 for g in G8]),
                    ("each pair exchanged", [g ^ 1 for g in G8]),
                    ("the block's first for all", [0] * 8),
                )
            ),
            *(
                grid_way(name, kinds, _grid_scales(order))
                for kinds, of in ((GRIDS_16, G16), (GRIDS_32, G8))
                for name, order in (
                    ("the next one's", [(g + 1) % len(of) for g in of]),
                    ("each pair exchanged", [g ^ 1 for g in of]),
                    ("each pair's first for both", [g // 2 * 2 for g in of]),
                    ("the block's first for all", [0] * len(of)),
                )
            ),
            *(
                way(name, K45, fields=groups(order))
                for name, order in (
                    ("the next one's", [(g + 1) % 8 for g in G8]),
                    ("the one's before", [(g - 1) % 8 for g in G8]),
                    ("each pair's first for both nibbles", [g // 2 * 2 for g in G8]),
                    ("each pair exchanged", [g ^ 1 for g in G8]),
                    ("not moved on", [g % 2 for g in G8]),
                    ("moved on by 1 in place of 2", [g // 2 + g % 2 for g in G8]),
                    ("one for each 64 values", [g // 2 for g in G8]),
                )
            ),
            *(
                way(name, ("NVFP4",), fields=groups(order))
                for name, order in (
                    ("the next one's", (1, 2, 3, 0)),
                    ("the one's before", (3, 0, 1, 2)),
                    ("each pair exchanged", (1, 0, 3, 2)),
                    ("each pair's first for both", (0, 0, 2, 2)),
                    ("the block's first for all", (0, 0, 0, 0)),
                )
            ),
            way("the next one's minimum", K45, fields=groups(G8, [(g + 1) % 8 for g in G8])),
            way("each pair's first minimum for both", K45, fields=groups(G8, [g // 2 * 2 for g in G8])),
        ),
    ),
    BlockFault(
        "scale-unsigned",
        "signed scales of sub-blocks taken as unsigned",
        "take the scales of Q6_K as int8",
        (way("0 to 255", ("Q6_K",), fields=_unsigned_scales),),
    ),
    BlockFault(
        "scale-packing",
        "the scales of sub-blocks unpacked wrongly",
        "unpack them as get_scale_min_k4 (Q4_K, Q5_K), dequantize_row_q3_K and dequantize_row_iq4_xs do; in Q2_K the"
        " low nibble is the scale and the high one the minimum",
        (
            *(
                way("scales and minima exchanged", (kind,), layout=packing(numbers.exchanged(kind)))
                for kind in K_MINIMA
            ),
            way("indices from 4 on as those below", K45, layout=packing(numbers.k4_without_upper_branch)),
            way("upper 2 bits left out", K45, layout=packing(numbers.k4_without_top_bits)),
            way("& 63 left out", K45, layout=packing(numbers.k4_without_mask)),
            way("upper 2 bits of scale and minimum exchanged", K45, layout=packing(numbers.k4_top_bits_exchanged)),
            way("lower 4 bits of scale and minimum exchanged", K45, layout=packing(numbers.k4_nibbles_exchanged)),
            way("6 bits in sequence, in pairs", K45, layout=packing(numbers.k4_pairs_in_sequence)),
            way("6 bits in sequence, scales first", K45, layout=packing(numbers.k4_all_in_sequence)),
            *(
                way(name, ("IQ4_XS",), layout=packing(unpack))
                for name, unpack in (
                    ("32 not subtracted", numbers.xs(less=0)),
                    ("upper 2 bits left out", numbers.xs(high_shifts=())),
                    ("low and high nibbles exchanged", numbers.xs(low_shifts=(4, 0))),
                    ("upper bits from the topmost down", numbers.xs(high_shifts=(6, 4, 2, 0))),
                    ("all low nibbles before all high ones", numbers.xs(low_width=4)),
                    ("upper bits taken from the 2 bytes in turn", numbers.xs(high_width=2)),
                )
            ),
            *(
                way(name, ("Q3_K",), layout=packing(unpack))
                for name, unpack in (
                    ("32 not subtracted", numbers.q3(finish=numbers.as_stored)),
                    ("two's complement in place of an offset", numbers.q3(finish=numbers.twos_complement)),
                    ("upper 2 bits left out", numbers.q3(finish=numbers.lower_bits(32))),
                    ("lower 4 bits alone, less 8", numbers.q3(finish=numbers.lower_bits(8))),
                    ("lower 4 bits alone, in sequence, less 8", numbers.q3(1, finish=numbers.lower_bits(8))),
                    ("lower 4 bits in sequence", numbers.q3(low_width=1)),
                    ("upper 2 bits in sequence", numbers.q3(high_width=1)),
                    ("both in sequence", numbers.q3(low_width=1, high_width=1)),
                    ("6 bits in sequence", numbers.q3_in_sequence),
                )
            ),
        ),
    ),
)
