"""Weights: handles on tensors that stay in the mapped file until an operation uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from firstdiff.model import quants
from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import GGUF
from firstdiff.model.holding import held, holding
from firstdiff.model.quants import QuantType

WITH_MINIMA = ("Q4_1", "Q5_1")
"""Types whose product ggml takes with the block's minimum and the activations' block sum apart."""

CODES = {  # where a block keeps its codes (ggml-common.h): with these bytes 0, a block's values are its minima
    "Q4_1": slice(4, 20),
    "Q5_1": slice(4, 24),
    "Q2_K": slice(16, 80),
    "Q4_K": slice(16, 144),
    "Q5_K": slice(16, 176),
}

Decode = Callable[[npt.NDArray[np.uint8], QuantType], npt.NDArray[np.float32]]

CHUNK = 1 << 20
"""Elements dequantised at a time, 4 MiB of float32: with fewer a product of some tens of rows spends more of its time
on arranging its operands, and more of them would be read from memory and not from a cache."""

PARTS = 8
"""Parts that a weight of fewer chunks is divided into, but none gets smaller than such a part of a chunk."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the model, dequantised when used.

    Parameters
    ----------
    name
        llama.cpp's name, such as ``blk.3.attn_q.weight``.
    kind
        Its quantisation type.
    shape
        Row-major: ``(out, in)`` for a matrix (GGUF writes ``ne = [in, out]``).
    raw
        Its bytes, uint8 [n].
    dense
        Values that stand in for what `raw` holds, float32 of `shape`. Only a hypothesis sets them.
    decode
        Decodes blocks, uint8 [n, bytes] -> float32 [n, block], in place of ggml's way. Only a hypothesis sets it.
    filed
        Of a weight whose rows an engine has in another order: the weight as the file has it, and which of its rows each
        row is.
    held, largest
        What the engine holds the values in, see :mod:`firstdiff.model.holding`, and the largest magnitude of the whole
        tensor where that decides. `dense` values are taken for held ones.
    """

    name: str
    kind: QuantType
    shape: tuple[int, ...]
    raw: npt.NDArray[np.uint8]
    dense: npt.NDArray[np.float32] | None = None
    decode: Decode | None = None
    filed: tuple[Weight, npt.NDArray[np.integer]] | None = None
    held: str | None = None
    largest: float = 0.0

    def held_in(self, kind: str | None) -> Weight:
        """The weight as an engine has it that holds it in a kind; itself where that is settled already.

        Raises
        ------
        ModelError
            For rows that are no whole groups of the kind.
        """
        if kind is None or self.held is not None:
            return self
        if not holding(kind).divides(self.shape[-1]):
            raise ModelError(f"'{self.name}' has rows of {self.shape[-1]} numbers, which are no whole groups of {kind}")
        largest = self.measured().largest if holding(kind).of_tensors else 0.0
        dense = None if self.dense is None else held(self.dense, kind, largest)
        return replace(self, held=kind, largest=largest, dense=dense)

    def measured(self) -> Weight:
        """The weight with its largest magnitude known: all of it is decoded for that, once."""
        if self.largest or len(self.shape) == 1:
            return self
        buffer = self.buffer()
        largest = max(float(np.abs(self.rows(*bounds, buffer)).max()) for bounds in self.chunks())
        return replace(self, largest=largest)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.shape[-1] // self.kind.block * self.kind.nbytes

    def raw_rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes of the rows from `start` to `stop`, uint8 [n]."""
        return self.raw[start * self.row_bytes : stop * self.row_bytes]

    def rows(self, start: int, stop: int, buffer: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """Values of the rows from `start` to `stop`, float32 [stop - start, in], in `buffer` if one is given."""
        if self.dense is not None:
            return self.dense[start:stop]
        out = None if buffer is None else buffer[: (stop - start) * self.shape[-1]]
        return self._held(self._decoded(self.raw_rows(start, stop), out).reshape(-1, self.shape[-1]))

    def values(self) -> npt.NDArray[np.float32]:
        """All values, float32 of `shape`."""
        if self.dense is not None:
            return self.dense
        return self._held(self._decoded(self.raw).reshape(self.shape))

    def gather(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """The rows with the given indices, float32 [len(rows), in]; no other row is read."""
        if self.dense is not None:
            picked_rows: npt.NDArray[np.float32] = self.dense[rows]
            return picked_rows
        picked = self.raw.reshape(self.shape[0], self.row_bytes)[rows]
        return self._held(self._decoded(picked.reshape(-1)).reshape(-1, self.shape[-1]))

    def pick(self, rows: npt.NDArray[np.integer]) -> Weight:
        """The weight that has these rows alone, in this order; of a vector, these elements."""
        shape = (len(rows), *self.shape[1:])
        if self.dense is not None or len(self.shape) == 1:
            return replace(self, shape=shape, dense=self.values()[rows])
        raw = self.raw.reshape(self.shape[0], self.row_bytes)[rows]
        return replace(self, shape=shape, raw=raw.reshape(-1))

    def reordered(self, rows: npt.NDArray[np.integer]) -> Weight:
        """The weight as an engine has it that puts the file's rows in this order."""
        return replace(self.pick(rows), filed=(self, rows))

    def read_as(self, change: Callable[[Weight], Weight | None]) -> Weight | None:
        """The weight if its bytes are read otherwise, which an engine does before it puts rows in another order."""
        if self.filed is None:
            return change(self)
        of, rows = self.filed
        changed = change(of)
        return None if changed is None else changed.reordered(rows)

    def minima(self, start: int, stop: int) -> npt.NDArray[np.float32] | None:
        """Block minima of the rows, float32 [stop - start, in / 32], for types whose product keeps them apart."""
        if self.dense is not None or self.held is not None or self.kind.name not in WITH_MINIMA:
            return None
        raw = self.raw_rows(start, stop)
        if self.decode is None:
            return quants.minima(raw, self.kind).reshape(stop - start, -1)
        blocks = raw.reshape(-1, self.kind.nbytes).copy()
        blocks[:, CODES[self.kind.name]] = 0
        values = self.decode(blocks, self.kind)
        return values[:, 0].reshape(stop - start, -1) if (values == values[:, :1]).all() else None

    def minimum_of_each(self, start: int, stop: int) -> npt.NDArray[np.float32] | None:
        """Of each value of the rows, its block's minimum, [stop - start, in]; None for types without minima."""
        if self.dense is not None or self.kind.name not in CODES:
            return None
        blocks = self.raw_rows(start, stop).reshape(-1, self.kind.nbytes).copy()
        blocks[:, CODES[self.kind.name]] = 0
        return quants.dequantize(blocks.reshape(-1), self.kind).reshape(stop - start, -1)

    def buffer(self) -> npt.NDArray[np.float32] | None:
        """Memory for one of :meth:`chunks`, to be used again for the next; None where values need none."""
        if self.dense is not None or self.decode is not None or self.kind.name == "F32":
            return None
        return np.empty(max(stop - start for start, stop in self.chunks()) * self.shape[-1], np.float32)

    def _held(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return values if self.held is None else held(values, self.held, self.largest)

    def _decoded(
        self, raw: npt.NDArray[np.uint8], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        if self.decode is None:
            return quants.dequantize(raw, self.kind, out)
        return self.decode(raw.reshape(-1, self.kind.nbytes), self.kind).reshape(-1)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Bounds of runs of rows, each of so many elements that the weight has parts for several workers."""
        elements = min(CHUNK, max(CHUNK // PARTS, math.prod(self.shape) // PARTS))
        step = max(1, elements // self.shape[-1])
        for start in range(0, self.shape[0], step):
            yield start, min(start + step, self.shape[0])


class Weights:
    """The tensors of a file by their names within a layer: ``weights.layer(3)["attn_q.weight"]``."""

    def __init__(self, gguf: GGUF, prefix: str = "") -> None:
        self._gguf = gguf
        self._prefix = prefix

    def layer(self, index: int) -> Weights:
        """The tensors of layer `index`."""
        return Weights(self._gguf, f"blk.{index}.")

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._gguf.tensors

    def __getitem__(self, name: str) -> Weight:
        full = self._prefix + name
        info = self._gguf.tensors[full]
        return Weight(full, info.type, info.shape, self._gguf.raw(full))

    def get(self, name: str) -> Weight | None:
        """The tensor, or None where the file has none of that name."""
        return self[name] if name in self else None  # noqa: SIM401 - this is the method that does it
