"""What the eval callback shows of a graph: tensors, and the nodes that compute them (``struct ggml_tensor``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.model import quants
from firstdiff.model.errors import ModelError
from firstdiff.model.quants import SUPPORTED, QuantType
from firstdiff.model.rounding import ROUNDINGS, round_to

Shape = tuple[int, int, int, int]
Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[Any]
"""What a tensor holds: float32 where ggml computes with it, or integers."""

VIEWS = frozenset(("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"))
"""Operations that compute nothing: their result is other strides on the same memory."""

DTYPES: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}
"""Types whose numbers numpy has."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a graph.

    Parameters
    ----------
    name
        llama.cpp's, such as ``Qcur-3`` or ``node_28``.
    kind
        Its type.
    shape
        [ne3, ne2, ne1, ne0].
    strides
        Bytes from one number, or block, to the next along each axis.
    at, root
        Numbers that name it, and the tensor whose memory it lies in, within one graph.
    offset
        Bytes from the beginning of that memory to its first number.
    """

    name: str
    kind: QuantType
    shape: Shape
    strides: Shape
    at: int = 0
    root: int = 0
    offset: int = 0

    @property
    def contiguous(self) -> bool:
        """Whether its numbers lie one behind another in the order of its axes (``ggml_is_contiguous``)."""
        steps = (*(np.cumprod(self.shape[:0:-1])[::-1]), 1)
        return all(n == 1 or s == e for n, s, e in zip(self.shape, self.steps, steps, strict=True))

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape))

    @property
    def steps(self) -> Shape:
        """Numbers from one to the next along each axis."""
        n, each = self.kind.block, self.kind.nbytes
        return (*(s // each * n for s in self.strides[:3]), self.strides[3] // each)  # type: ignore[return-value]

    @property
    def start(self) -> int:
        """Numbers from the beginning of its memory to its first."""
        return self.offset // self.kind.nbytes * self.kind.block

    @property
    def nbytes(self) -> int:
        """Bytes from its first number to behind its last (``ggml_nbytes``)."""
        if 0 in self.shape:
            return 0
        last = (self.shape[3] // self.kind.block - 1) * self.strides[3] + self.kind.nbytes
        return last + sum((n - 1) * s for n, s in zip(self.shape[:3], self.strides[:3], strict=True))

    def values(self, raw: Bytes) -> Numbers:
        """Numbers of its bytes: float32, or integers.

        Raises
        ------
        ModelError
            For a type whose numbers nobody knows.
        """
        if 0 in self.shape:
            return np.empty(self.shape, DTYPES.get(self.kind.name, np.float32))
        if self.kind.name in DTYPES:
            x = np.ndarray(self.shape, DTYPES[self.kind.name], raw, strides=self.strides)
            return x.astype(np.float32) if self.kind.name == "F16" else x
        if self.kind.name not in SUPPORTED:
            raise ModelError(f"tensor {self.name!r:.60} has type {self.kind.name}, whose numbers are not known")
        blocks = np.ndarray(
            (*self.shape[:3], self.shape[3] // self.kind.block), f"V{self.kind.nbytes}", raw, strides=self.strides
        )
        packed = np.frombuffer(np.ascontiguousarray(blocks).tobytes(), np.uint8)
        return quants.dequantize(packed, self.kind).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Node:
    """A tensor that is computed.

    Parameters
    ----------
    op
        ``MUL_MAT``, ``ROPE``; of unary operations and gates the kind: ``SILU``, ``SWIGLU``.
    tensor
        What it computes.
    sources
        What it reads, by place; None for an operand that is not given.
    params
        ``op_params``, 16 int32.
    """

    op: str
    tensor: Tensor
    sources: tuple[Tensor | None, ...]
    params: tuple[int, ...]

    def number(self, place: int) -> np.float32:
        """A parameter that is a float32."""
        return np.int32(self.params[place]).view(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The graph of one step, as the eval callback shows it.

    Parameters
    ----------
    nodes
        In execution order, views among them.
    leafs
        What is read and nobody computes, by :attr:`Tensor.at`: numbers as they were before the step. Weights of the
        file, and memory that is written in this step, have None.
    """

    nodes: tuple[Node, ...]
    leafs: Mapping[int, Leaf]


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A tensor that nobody computes, and its numbers; None where it is a weight, or memory that the graph writes."""

    tensor: Tensor
    values: Numbers | None


def stored(x: Numbers, kind: QuantType) -> Numbers:
    """Numbers as a tensor of a type holds them: float32, or integers.

    Raises
    ------
    ModelError
        For a type to which nobody knows how ggml rounds.
    """
    if kind.name == "F32":
        return np.asarray(x, np.float32)
    if kind.name in DTYPES and kind.name != "F16":
        return x.astype(DTYPES[kind.name])
    if kind.name.lower() not in ROUNDINGS:
        raise ModelError(f"how ggml rounds to {kind.name} is not known")
    return round_to(np.ascontiguousarray(x, np.float32), kind.name.lower())
