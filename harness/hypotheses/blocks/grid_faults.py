"""Faults of types with grids: which entry a code is, its signs and deltas, and what is computed from the scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from firstdiff.hypotheses.blocks.ways import BlockFault, grid_way
from firstdiff.model.blocks import Bytes, Floats
from firstdiff.model.grid_blocks import GRIDS, GridFields

IQ1 = ("IQ1_S", "IQ1_M")
IQ2 = ("IQ2_XXS", "IQ2_XS", "IQ2_S")
HIGH_BITS_APART = (*IQ1, "IQ2_S", "IQ3_S")
"""Types that keep the high bits of their codes apart from the low bytes."""

SEVEN_SIGNS = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")
"""Types that store seven signs for eight numbers."""

SIGNED = (*SEVEN_SIGNS, "IQ2_S", "IQ3_S")

Change = Callable[[GridFields], GridFields]


def _low_byte(f: GridFields) -> GridFields:
    return replace(f, entries=f.entries & 255)


def _entries(order: Sequence[int], mask: int = 0xFFFF) -> Change:
    """Of each so many codes, code i takes those bits of code ``order[i]`` that are in the mask."""

    def change(f: GridFields) -> GridFields:
        runs = f.entries.reshape(len(f.entries), f.entries.shape[1] // len(order), len(order))
        taken = runs & (0xFFFF ^ mask) | runs[:, :, list(order)] & mask
        return replace(f, entries=taken.reshape(f.entries.shape))

    return change


def _high_bits(order: Sequence[int]) -> Change:
    return _entries(order, 0xFF00)


def _grid_of(name: str) -> Change:
    return lambda f: replace(f, grid=name)


def _signs(by: Callable[[Bytes], Bytes]) -> Change:
    def change(f: GridFields) -> GridFields:
        assert f.signs is not None
        return replace(f, signs=by(f.signs))

    return change


def _topmost_first(signs: Bytes) -> Bytes:
    return np.packbits(np.unpackbits(signs, axis=1, bitorder="little"), axis=1, bitorder="big")


def _deltas(by: Callable[[Floats], Floats]) -> Change:
    def change(f: GridFields) -> GridFields:
        assert f.deltas is not None
        return replace(f, deltas=by(f.deltas))

    return change


def _formula(**constants: float) -> Change:
    return lambda f: replace(f, **constants)  # type: ignore[arg-type]


GRID_FAULTS: tuple[BlockFault, ...] = (
    BlockFault(
        "grid-entry",
        "codes taken for the wrong entries of the grid",
        "look each code up in its own type's grid (ggml-common.h): join the low byte with its bits from qh (IQ1, IQ2_S,"
        " IQ3_S), or mask the word with 511 (IQ2_XS)",
        (
            grid_way("high bits left out", (*HIGH_BITS_APART, "IQ2_XS"), _low_byte),
            grid_way("the high bits of each pair exchanged", HIGH_BITS_APART, _high_bits((1, 0))),
            grid_way("high bits from the topmost down", ("IQ1_S", "IQ2_S"), _high_bits((3, 2, 1, 0))),
            grid_way("high bits from the topmost down", ("IQ3_S",), _high_bits(range(8)[::-1])),
            grid_way("each pair of entries exchanged", GRIDS, _entries((1, 0))),
            grid_way("each four entries reversed", GRIDS, _entries((3, 2, 1, 0))),
            grid_way("each pair's first entry for both", GRIDS, _entries((0, 0))),
            grid_way("the grid of IQ2_XS", ("IQ2_XXS",), _grid_of("IQ2_XS")),
            grid_way("the grid of IQ2_S", ("IQ2_XXS", "IQ2_XS"), _grid_of("IQ2_S")),
            grid_way("the grid of IQ3_S", ("IQ3_XXS",), _grid_of("IQ3_S")),
        ),
    ),
    BlockFault(
        "sign-mask",
        "the signs of an entry's numbers applied wrongly",
        "bit j is the sign of number j; IQ2_XXS, IQ2_XS and IQ3_XXS store seven bits, and the eighth makes the number"
        " of minus signs even (ksigns_iq2xs); IQ2_S and IQ3_S store all eight",
        (
            grid_way("left out", SIGNED, lambda f: replace(f, signs=None)),
            grid_way("the eighth always plus", SEVEN_SIGNS, _signs(lambda signs: signs & np.uint8(127))),
            grid_way("the topmost bit for the first number", SIGNED, _signs(_topmost_first)),
            grid_way("a set bit taken for plus", SIGNED, _signs(lambda signs: ~signs)),
            grid_way("those of the next eight numbers", SIGNED, _signs(lambda signs: np.roll(signs, -1, axis=1))),
        ),
    ),
    BlockFault(
        "grid-delta",
        "the delta of IQ1 left out, or of the wrong sign",
        "add 0.125 to every number of an entry, or subtract it where the delta's bit is set (IQ1_S: bit 15 of qh;"
        " IQ1_M: bits 3 and 7 of each byte of qh)",
        (
            grid_way("left out", IQ1, _deltas(np.zeros_like)),
            grid_way("of the other sign", IQ1, _deltas(np.negative)),
            grid_way("always added", IQ1, _deltas(np.abs)),
        ),
    ),
    BlockFault(
        "grid-scale",
        "the scales of sub-blocks computed wrongly from d and the stored bits",
        "multiply by d * (0.5 + scale) / 4 (IQ2), d * (0.5 + scale) / 2 (IQ3_XXS) or d * (1 + 2 * scale) (IQ3_S, IQ1)",
        (
            grid_way("0.5 not added", (*IQ2, "IQ3_XXS"), _formula(added=0)),
            grid_way("1 added instead of 0.5", (*IQ2, "IQ3_XXS"), _formula(added=1)),
            grid_way("not divided by 4", IQ2, _formula(factor=1)),
            grid_way("divided by 2, as in IQ3_XXS", IQ2, _formula(factor=0.5)),
            grid_way("divided by 8, which goes with 1 + 2 * scale", IQ2, _formula(factor=0.125)),
            grid_way("not divided by 2", ("IQ3_XXS",), _formula(factor=1)),
            grid_way("divided by 4, which goes with 1 + 2 * scale", ("IQ3_XXS",), _formula(factor=0.25)),
            grid_way("1 not added", ("IQ3_S", *IQ1), _formula(added=0)),
            grid_way("not doubled", ("IQ3_S", *IQ1), _formula(times=1)),
            grid_way("the stored scale taken as 0", GRIDS, _formula(times=0)),
        ),
    ),
)
