"""Faults of dequantisation, as ways of decoding raw blocks wrongly.

Each way is one slip in ``dequantize_row_*`` of ggml/src/ggml-quants.c (a shift, a mask, a pointer, an index, a
struct's field), or was seen in an engine: paiml/aprender#1656, #1924, #2115, #2127, paiml/trueno#182,
ml-explore/mlx#3664, 1bit-MONSTER/1bit-MONSTER#473, #572, #734, tenstorrent/tt-metal#48264.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from firstdiff.hypotheses.blocks import numbers
from firstdiff.hypotheses.blocks.codes import HIGH_BITS, SIGNS
from firstdiff.hypotheses.blocks.few_bit_faults import TABLE_FAULTS
from firstdiff.hypotheses.blocks.grid_faults import GRID_FAULTS
from firstdiff.hypotheses.blocks.order import ORDER
from firstdiff.hypotheses.blocks.scales import SCALES
from firstdiff.hypotheses.blocks.ways import (
    FIFTHS,
    K_MINIMA,
    MINIMA,
    WITH_HALF,
    WITH_MINIMA,
    BlockFault,
    BlockWay,
    Decode,
    grid_way,
    halves,
    high_bits,
    low,
    no_minimum,
    ones,
    placed,
    way,
)
from firstdiff.model.blocks import Bytes, Fields, Floats, Layout, half
from firstdiff.model.grid_blocks import GRIDS
from firstdiff.model.quants import QuantType

__all__ = ["BLOCK_FAULTS", "BlockFault", "BlockWay", "Decode"]


def _number(name: str, number: numbers.Number, kind: str | None = "F16") -> tuple[BlockWay, ...]:
    """The 16 bits of the scales taken for another number, and those of the values of `kind`."""

    def decode(raw: Bytes, _: QuantType) -> Floats:
        return number(np.ascontiguousarray(raw).view("<u2")[:, 0])[:, None]

    scales = (
        way(f"{name}: d, and dmin or m", WITH_HALF, layout=halves(number)),
        grid_way(f"{name}: d", [k for k in GRIDS if number is not numbers.swapped or k != "IQ1_M"], number=number),
    )
    return (*scales, BlockWay(f"{name}: every value", (kind,), decode)) if kind else scales


def _bf16_as_half(raw: Bytes, _: QuantType) -> Floats:
    return half(np.ascontiguousarray(raw).view("<u2")[:, 0])[:, None]


def _bf16_swapped(raw: Bytes, _: QuantType) -> Floats:
    return numbers.bf16(np.ascontiguousarray(raw).view(">u2")[:, 0])[:, None]


def _float32_swapped(raw: Bytes, _: QuantType) -> Floats:
    return np.ascontiguousarray(raw[:, ::-1]).view("<f4")


def _digits_behind_d(where: Layout) -> Layout:
    return replace(low(runs=((2, 32, 5), (34, 16, 5), (50, 4, 4)))(where), d=0)


def _other_sign(f: Fields) -> Fields:
    return replace(f, subtracted=not f.subtracted)


def _times_d(f: Fields) -> Fields:
    assert f.m is not None
    with np.errstate(all="ignore"):
        return replace(f, m=f.d * f.m)


def _zero_point(f: Fields) -> Fields:
    return _other_sign(_times_d(f))


def _by_d(f: Fields) -> Fields:
    return replace(f, m=f.d)


FIELDS: tuple[BlockFault, ...] = (
    BlockFault(
        "header-size",
        "the codes read from too early in the block, some of its header not skipped",
        "take each field's offset from the block's struct in ggml-common.h",
        (
            way("2 bytes in place of 4", ("Q4_1",), layout=placed(low=2)),
            way("2 bytes in place of 4", ("Q5_1",), layout=placed(high=2, low=6)),
            way("dmin not skipped", ("Q4_K",), layout=placed(packed=2, low=14)),
            way("dmin not skipped", ("Q5_K",), layout=placed(packed=2, high=14, low=46)),
            way("high bits not skipped", ("Q5_0",), layout=placed(low=2)),
            way("high bits not skipped", ("Q5_1",), layout=placed(low=4)),
            way("high bits not skipped", ("Q5_K",), layout=placed(low=16)),
            way("scales not skipped", ("Q4_K",), layout=placed(low=4)),
            way("scales not skipped", ("Q5_K",), layout=placed(high=4, low=36)),
            way("scales not skipped", ("Q2_K", "NVFP4"), layout=placed(low=0)),
            way("scales not skipped", ("IQ4_XS",), layout=placed(low=2)),
        ),
    ),
    BlockFault(
        "field-order",
        "the fields of a block in another order than the file's",
        "take the order of the fields from the block's struct in ggml-common.h",
        (
            way("d first", ("Q2_K",), layout=placed(d=0, m=2, packed=4, low=20)),
            way("d first", ("Q3_K",), layout=placed(d=0, high=2, low=34, packed=98)),
            way("d first", ("Q6_K",), layout=placed(d=0, low=2, high=130, packed=194)),
            way("d first", ("TQ2_0",), layout=placed(d=0, low=2)),
            way(
                "d first",
                ("TQ1_0",),
                layout=_digits_behind_d,
            ),
            way("low bits before high ones", ("Q5_0",), layout=placed(low=2, high=18)),
            way("low bits before high ones", ("Q5_1",), layout=placed(low=4, high=20)),
            way("low bits before high ones", ("Q5_K",), layout=placed(low=16, high=144)),
            way("low bits before high ones", ("Q3_K",), layout=placed(low=0, high=64)),
            way("high bits before low ones", ("Q6_K",), layout=placed(high=0, low=64)),
            way("codes before scales", ("Q2_K",), layout=placed(low=0, packed=64)),
            way("codes before scales", ("Q4_K",), layout=placed(low=4, packed=132)),
            way("codes before scales", ("IQ4_XS",), layout=placed(low=2, packed=130)),
            way("codes before scales", ("NVFP4",), layout=placed(low=0, packed=32)),
        ),
    ),
    BlockFault(
        "f16-subnormal",
        "subnormal float16 numbers converted wrongly",
        "a float16 of exponent 0 is its mantissa times 2^-24",
        (
            *_number("half their value", numbers.halved),
            *_number("twice their value", numbers.doubled),
            *_number("as zero", numbers.flushed),
            *_number("as if they were normal", numbers.rebiased),
        ),
    ),
    BlockFault(
        "endianness",
        "bytes in the other order",
        "read little-endian, as GGUF is unless its header says otherwise",
        (
            *_number("float16", numbers.swapped),
            way("32 high bits", FIFTHS, fields=high_bits([i ^ 24 for i in range(32)])),
            BlockWay("every value", ("BF16",), _bf16_swapped),
            BlockWay("every value", ("F32",), _float32_swapped),
        ),
    ),
    BlockFault(
        "half-as-bf16",
        "float16 read as bfloat16, its bits put on top of a float32",
        "convert float16 with its own exponent, 5 bits of bias 15",
        _number("moved up by 16 bits", numbers.bf16),
    ),
    BlockFault(
        "bf16-as-half",
        "bfloat16 read as float16",
        "put the 16 bits of a bfloat16 on top of a float32",
        (BlockWay("every value", ("BF16",), _bf16_as_half),),
    ),
)

MINIMUM: tuple[BlockFault, ...] = (
    BlockFault(
        "min-missing",
        "the minimum of the blocks ignored",
        "add m to each value (Q4_1, Q5_1), or subtract dmin times the sub-block's minimum (K types)",
        (
            way("of the block", WITH_MINIMA, fields=no_minimum),
            way("of the sub-block: dmin alone", K_MINIMA, fields=ones("mins")),
        ),
    ),
    BlockFault(
        "min-sign",
        "the minimum of the other sign",
        "the minimum is added in Q4_1 and Q5_1 and subtracted in the K types",
        (way("added in K types, subtracted in the others", WITH_MINIMA, fields=_other_sign),),
    ),
    BlockFault(
        "min-scale",
        "the minimum multiplied by the scale of the codes",
        "the minimum has its own scale: value = d * code + m, or d * scale * code - dmin * min",
        (
            way("d * (code + m)", MINIMA, fields=_times_d),
            way("d * (code - m)", MINIMA, fields=_zero_point),
            way("d in place of dmin or m", WITH_MINIMA, fields=_by_d),
        ),
    ),
)

BLOCK_FAULTS: dict[str, BlockFault] = {
    fault.id: fault for fault in (*ORDER, *SIGNS, *HIGH_BITS, *FIELDS, *MINIMUM, *SCALES, *TABLE_FAULTS, *GRID_FAULTS)
}
"""Every fault whose decoder takes each block by itself."""
