"""Faults of types with grids: which entry, whose signs, and what is made of the scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from firstdiff.hypotheses.blocks.ways import BlockFault, grid_way, parts
from firstdiff.model.blocks import Bytes, Floats
from firstdiff.model.grid_blocks import GRIDS, GridFields

ONE = ("IQ1_S", "IQ1_M")
HIGH = (*ONE, "IQ2_XS", "IQ2_S", "IQ3_S")
"""Types whose entries have high bits beside their bytes."""

SEVEN = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS")
"""Types that store seven signs of eight."""

SIGNED = (*SEVEN, "IQ2_S", "IQ3_S")
SIXTEENTHS = ("IQ1_M", "IQ2_XS", "IQ2_S")
"""Types with grids and a scale for each 16 values; the others have one for each 32."""

EIGHTHS = tuple(kind for kind in GRIDS if kind not in SIXTEENTHS)

Change = Callable[[GridFields], GridFields]


def _low_byte(f: GridFields) -> GridFields:
    return replace(f, entries=f.entries & 255)


def _high_bits_of(order: Sequence[int]) -> Change:
    """Of each so many entries, entry i takes the high bits of entry ``order[i]``."""

    def change(f: GridFields) -> GridFields:
        runs = f.entries.reshape(len(f.entries), f.entries.shape[1] // len(order), len(order))
        high = runs[:, :, list(order)] & 0xFF00
        return replace(f, entries=(runs & 255 | high).reshape(f.entries.shape))

    return change


def _entries_of(order: Sequence[int]) -> Change:
    """Of each so many entries, entry i is entry ``order[i]``."""

    def change(f: GridFields) -> GridFields:
        runs = f.entries.reshape(len(f.entries), f.entries.shape[1] // len(order), len(order))
        return replace(f, entries=runs[:, :, list(order)].reshape(f.entries.shape))

    return change


def _grid_of(name: str) -> Change:
    return lambda f: replace(f, name=name)


def _signs(by: Callable[[Bytes], Bytes]) -> Change:
    def change(f: GridFields) -> GridFields:
        assert f.signs is not None
        return replace(f, signs=by(f.signs))

    return change


def _topmost_first(signs: Bytes) -> Bytes:
    return np.packbits(np.unpackbits(signs, axis=1, bitorder="little"), axis=1, bitorder="big")


def _scales_of(order: Sequence[int]) -> Change:
    return lambda f: replace(f, scales=parts(f.scales, [*order]))


def _made(**numbers: float) -> Change:
    return lambda f: replace(f, **numbers)  # type: ignore[arg-type]


def _deltas(by: Callable[[Floats], Floats]) -> Change:
    def change(f: GridFields) -> GridFields:
        assert f.deltas is not None
        return replace(f, deltas=by(f.deltas))

    return change


def _scale_orders(kinds: Sequence[str], n: int) -> tuple[tuple[str, Sequence[str], Change], ...]:
    return (
        ("the next one's", kinds, _scales_of([(g + 1) % n for g in range(n)])),
        ("each pair exchanged", kinds, _scales_of([g ^ 1 for g in range(n)])),
        ("each pair's first for both", kinds, _scales_of([g // 2 * 2 for g in range(n)])),
        ("the block's first for all", kinds, _scales_of([0] * n)),
    )


GRID_FAULTS: tuple[BlockFault, ...] = (
    BlockFault(
        "grid-entry",
        "codes taken for other entries of the grid than they are",
        "join each byte of a code with its own high bits, and look the entry up in the type's own grid (ggml-common.h)",
        (
            grid_way("high bits left out", HIGH, _low_byte),
            grid_way("the high bits of the next entry", HIGH, _high_bits_of((1, 0))),
            grid_way("high bits from the topmost down", HIGH, _high_bits_of((3, 2, 1, 0))),
            grid_way("each pair of entries exchanged", GRIDS, _entries_of((1, 0))),
            grid_way("four entries in the other order", GRIDS, _entries_of((3, 2, 1, 0))),
            grid_way("each pair's first entry for both", GRIDS, _entries_of((0, 0))),
            grid_way("the grid of IQ2_XS", ("IQ2_XXS",), _grid_of("IQ2_XS")),
            grid_way("the grid of IQ2_S", ("IQ2_XXS", "IQ2_XS"), _grid_of("IQ2_S")),
            grid_way("the grid of IQ3_S", ("IQ3_XXS",), _grid_of("IQ3_S")),
        ),
    ),
    BlockFault(
        "sign-mask",
        "the signs of a grid's values wrong",
        "bit j of a byte of signs is value j's; where seven bits are stored, the eighth makes the number of minus signs"
        " even (ksigns_iq2xs)",
        (
            grid_way("left out", SIGNED, lambda f: replace(f, signs=None)),
            grid_way("the eighth left out", SEVEN, _signs(lambda signs: signs & np.uint8(127))),
            grid_way("the topmost bit for the first value", SIGNED, _signs(_topmost_first)),
            grid_way("of the other meaning", SIGNED, _signs(lambda signs: ~signs)),
            grid_way("those of the next eight values", SIGNED, _signs(lambda signs: np.roll(signs, -1, axis=1))),
            grid_way("delta left out", ONE, _deltas(np.zeros_like)),
            grid_way("delta of the other sign", ONE, _deltas(np.negative)),
            grid_way("delta always added", ONE, _deltas(np.abs)),
        ),
    ),
    BlockFault(
        "grid-scale",
        "the scales of a grid's sub-blocks made up wrongly",
        "d * (0.5 + scale) / 4 for IQ2, d * (0.5 + scale) / 2 for IQ3_XXS, d * (1 + 2 * scale) for IQ3_S and IQ1;"
        " the low nibble's scale comes first",
        (
            grid_way("0.5 not added", ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"), _made(first=0)),
            grid_way("1 added in place of 0.5", ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"), _made(first=1)),
            grid_way("not divided by 4", ("IQ2_XXS", "IQ2_XS", "IQ2_S"), _made(whole=1)),
            grid_way(
                "divided by 8, as by another grid's largest value", ("IQ2_XXS", "IQ2_XS", "IQ2_S"), _made(whole=0.125)
            ),
            grid_way("not divided by 2", ("IQ3_XXS",), _made(whole=1)),
            grid_way("divided by 4, as in IQ2", ("IQ3_XXS",), _made(whole=0.25)),
            grid_way("1 not added", ("IQ3_S", *ONE), _made(first=0)),
            grid_way("not doubled", ("IQ3_S", *ONE), _made(step=1)),
            grid_way("left out", GRIDS, _made(step=0)),
            *(grid_way(*of) for of in _scale_orders(SIXTEENTHS, 16)),
            *(grid_way(*of) for of in _scale_orders(EIGHTHS, 8)),
        ),
    ),
)
