"""Faults of types of few bits: what their codes stand for, which elements these belong to, and scales of eight bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from firstdiff.hypotheses.blocks.ways import FP4, BlockFault, low, through, way
from firstdiff.model.blocks import Fields, Floats, Layout, looked_up
from firstdiff.model.few_bits import E2M1, E8M0, NON_LINEAR, UE4M3

LINEAR = [float(q - 8) for q in range(16)]
IQ4 = ("IQ4_NL", "IQ4_XS")


def _scaled(by: float) -> Callable[[Fields], Fields]:
    """Every scale so many times what it is."""

    def change(f: Fields) -> Fields:
        with np.errstate(over="ignore"):
            return replace(f, d=f.d * np.float32(by))

    return change


def _bytes_as(numbers: Floats) -> Callable[[Layout], Layout]:
    """The byte of the block's scale, or those of its sub-blocks, stand for other numbers."""

    def change(where: Layout) -> Layout:
        if where.byte:
            return replace(where, half=lambda byte: numbers[byte])
        return replace(where, unpack=looked_up(numbers))

    return change


def _float8(exponent_bits: int, bias: int) -> Floats:
    """Half of what each byte stands for as a float of eight bits without its sign: halved as ggml's tables are."""
    byte, fraction_bits = np.arange(256) & 127, 7 - exponent_bits
    exponent, fraction = byte >> fraction_bits, (byte & (1 << fraction_bits) - 1) / (1 << fraction_bits)
    value = np.where(exponent == 0, np.ldexp(fraction, 1 - bias), np.ldexp(1 + fraction, exponent - bias))
    return np.asarray(value / 2, np.float32)


def _digits(*, apart: bool) -> Callable[[Fields], Fields]:
    """The digits of each byte of TQ1_0 side by side; or `apart` as they should be, and in the other order."""

    def change(f: Fields) -> Fields:
        blocks = len(f.low)
        runs = (f.low[:, a : a + n * d].reshape(blocks, d, n) for a, n, d in ((0, 32, 5), (160, 16, 5), (240, 4, 4)))
        turned = (run[:, ::-1] if apart else run.swapaxes(1, 2) for run in runs)  # [block, digit, byte]
        return replace(f, low=np.hstack([run.reshape(blocks, run.shape[1] * run.shape[2]) for run in turned]))

    return change


TABLE_FAULTS: tuple[BlockFault, ...] = (
    BlockFault(
        "code-table",
        "codes taken for other numbers than the type's table has",
        "look codes up in the type's table: kvalues_iq4nl (IQ4_NL, IQ4_XS), the values of E2M1 (MXFP4, NVFP4), -1 and 1"
        " (Q1_0)",
        (
            way("q - 8, as in Q4_0", (*IQ4, *FP4), fields=through(LINEAR)),
            way("the values of E2M1", IQ4, fields=through(E2M1.tolist())),
            way("the table of IQ4_NL", FP4, fields=through(NON_LINEAR.tolist())),
            way("without the sign", FP4, fields=through(np.abs(E2M1).tolist())),
            way("the sign as two's complement", FP4, fields=through([*E2M1[:8], *(E2M1[:8] - 16)])),
            way(
                "exponents without an implicit one",
                FP4,
                fields=through([0, 1, 0, 1, 0, 2, 0, 4, 0, -1, 0, -1, 0, -2, 0, -4]),
            ),
            way("0 and 1", ("Q1_0",), fields=through((0, 1))),
            way("of the other sign", ("Q1_0",), fields=through((1, -1))),
        ),
    ),
    BlockFault(
        "digit-order",
        "the codes of a byte taken for other elements than they are",
        "take the codes of a byte in sequence, lowest bits first (Q1_0, Q2_0), or for elements 32 apart (TQ1_0, TQ2_0,"
        " but the last bytes of TQ1_0: 16 and 4 apart); the first digit of a byte of TQ1_0 is 3 * byte / 256",
        (
            way("in sequence", ("TQ2_0",), layout=low(width=1)),
            way("16 bytes at a time", ("TQ2_0",), layout=low(width=16)),
            way("64 bytes at a time", ("TQ2_0",), layout=low(width=64)),
            way("a run's bytes apart", ("Q1_0", "Q2_0"), layout=low(width=16)),
            way("the highest bits first", ("TQ2_0", "Q2_0"), layout=low(shifts=(6, 4, 2, 0))),
            way("the highest bits first", ("Q1_0",), layout=low(shifts=(7, 6, 5, 4, 3, 2, 1, 0))),
            way("in sequence", ("TQ1_0",), fields=_digits(apart=False)),
            way("the last digit first", ("TQ1_0",), fields=_digits(apart=True)),
        ),
    ),
    BlockFault(
        "scale-exponent",
        "a scale of eight bits taken for another number",
        "the scale of MXFP4 is 2^(e - 127) (E8M0), those of NVFP4 have four bits of exponent, of bias 7, and three of"
        " fraction (E4M3); ggml's table of E2M1 is doubled and its scales are halved: do both or neither",
        (
            way("twice as large: its table doubled, its scale not halved", FP4, fields=_scaled(2)),
            way("half as large: its scale halved, its table not doubled", FP4, fields=_scaled(0.5)),
            way("a quarter: the exponent's bias 2 too large", FP4, fields=_scaled(0.25)),
            way("as E4M3", ("MXFP4",), layout=_bytes_as(UE4M3)),
            way("as E8M0", ("NVFP4",), layout=_bytes_as(E8M0)),
            way("as E5M2", FP4, layout=_bytes_as(_float8(5, 15))),
            way("as an integer", FP4, layout=_bytes_as(np.arange(256, dtype=np.float32) / np.float32(2))),
        ),
    ),
)
