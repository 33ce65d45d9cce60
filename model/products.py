"""Products with a weight: it is dequantised once for all rows that are multiplied with it, whoever asks for them.

ggml multiplies quantised weights as integers. Here their numbers are made all the same, because the reference's own run
needs them; and once they are there, a product of further rows in float32 takes less time than integer kernels do.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstdiff.model import quants
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.flash import sums_in_f16
from firstdiff.model.weights import Weight
from firstdiff.model.workers import shared_out

MANY = 256
"""Rows from which turning them, and what comes of them, takes longer than it saves."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows [T, in] that a weight is multiplied with, in an arithmetic.

    Those of one owner are multiplied in one product, where their arithmetics allow; of several owners each gets what it
    would get alone, to the last bit.
    """

    x: Array
    arithmetic: Arithmetic
    owner: object = None

    @property
    def shares(self) -> Hashable:
        """What rows of one product have in common: the owner, and how they take the weight's numbers."""
        of = self.arithmetic
        own = self if of.products == "f16-sums" else None
        return id(self.owner), of.dtype, of.weights_and_results, None if of.ggml_products else of.products, own


def products(weight: Weight, rows: Sequence[Rows]) -> list[Array]:
    """Multiply rows with a weight [out, in], each in its arithmetic: [T, out] of each.

    With `ggml_products` activations are first rounded as ggml's CPU backend does for the weight's type; Q4_1 and Q5_1
    then take the block sums that ggml stores beside the codes, rounded to f16, for the products with the minima.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, each in enumerate(rows):
        groups.setdefault(each.shares, []).append(index)
    stacked = [_Stacked.of([rows[i] for i in of], weight) for of in groups.values()]

    def multiply(bounds: Sequence[tuple[int, int]]) -> None:
        buffer = weight.buffer()
        for start, stop in bounds:
            numbers = weight.rows(start, stop, buffer)
            for each in stacked:
                each.multiply(numbers, start, stop)

    shared_out(multiply, list(weight.chunks()))
    results: list[Array] = [np.empty(0)] * len(rows)
    for of, done in zip(groups.values(), stacked, strict=True):
        for index, result in zip(of, done.parted(), strict=True):
            results[index] = result
    return results


@dataclass(frozen=True, slots=True, eq=False)
class _Stacked:
    """Rows one below the other that take the weight's numbers alike, and their results."""

    weight: Weight
    arithmetic: Arithmetic
    counts: list[int]
    x: Array  # [row, in]
    turned: Array | None  # [in, row], as a product of few rows reads them fastest
    y: Array  # [row, out]
    sums: npt.NDArray[np.float32] | None  # [row, in / 32]

    @classmethod
    def of(cls, rows: Sequence[Rows], weight: Weight) -> _Stacked:
        operands = [_operand(each, weight) for each in rows]
        x = operands[0][0] if len(rows) == 1 else np.concatenate([x for x, _ in operands])
        sums = None
        if any(of is not None for _, of in operands):
            blocks = weight.shape[-1] // quants.BY_NAME["Q8_1"].block
            sums = np.concatenate([np.zeros((len(x), blocks), np.float32) if of is None else of for x, of in operands])
        arithmetic = rows[0].arithmetic
        y = np.empty((len(x), weight.shape[0]), arithmetic.dtype)
        turned = np.ascontiguousarray(x.T) if len(x) < MANY else None
        return cls(weight, arithmetic, [len(x) for x, _ in operands], x, turned, y, sums)

    def multiply(self, numbers: npt.NDArray[np.float32], start: int, stop: int) -> None:
        """Take rows of the weight, float32 [stop - start, in], into the results."""
        of = self.arithmetic
        numbers = of.operand(of.keep(of.widen(numbers)))
        y = self.y[:, start:stop]
        if of.products == "f16-sums":
            y[:] = sums_in_f16(self.x, numbers)
        elif self.turned is None:
            np.matmul(self.x, numbers.T, out=y)
        elif len(self.y) == 1:
            y[0] = numbers @ self.x[0]
        else:
            y[:] = (numbers @ self.turned).T
        if self.sums is not None and (minima := self.weight.minima(start, stop)) is not None:
            y += self.sums @ minima.T

    def parted(self) -> list[Array]:
        """The results of each, [T, out]."""
        return np.split(self.y, np.cumsum(self.counts)[:-1])


def _operand(rows: Rows, weight: Weight) -> tuple[Array, npt.NDArray[np.float32] | None]:
    """Rows as an operand, and what ggml's stored sums of blocks miss, where the type has them."""
    x = rows.arithmetic.operand(rows.x)
    if not rows.arithmetic.ggml_products:
        return x, None
    rounded, sums = quants.round_activations(np.ascontiguousarray(x, np.float32), weight.kind)
    return rows.arithmetic.widen(rounded), sums
