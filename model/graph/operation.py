"""A node of llama.cpp's graph as an operation that a probe can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.errors import ModelError
from firstdiff.model.graph.nodes import Node, Numbers, stored
from firstdiff.model.graph.products import Chosen
from firstdiff.model.graph.table import KERNELS, STATES, operands
from firstdiff.model.weights import Weight

Shape = tuple[int, ...]

SUMS = frozenset(("MUL_MAT", "MUL_MAT_ID", "SUM_ROWS", "MEAN", "SOFT_MAX", "RMS_NORM", "NORM", "L2_NORM", "SSM_SCAN"))
"""Operations that add up along a row of what they read."""


@dataclass(frozen=True, slots=True, eq=False)
class NodeOperation:
    """What a node computes, whatever it reads.

    Parameters
    ----------
    node
        The node.
    shape
        Of the result: ggml's, slowest axis first, without leading axes of one.
    takes
        The shape that the operation wants each operand in, and whether it is of whole numbers.
    """

    node: Node
    shape: Shape
    takes: tuple[tuple[Shape, bool], ...]

    @property
    def __name__(self) -> str:
        """The operation's name, as llama.cpp's in small letters."""
        return self.node.op.lower()

    @property
    def summed(self) -> int:
        """Of how many terms each number is the sum; 0 where it is no sum of a row."""
        first = self.node.sources[0]
        return first.shape[3] if first is not None and self.node.op in SUMS else 0

    @property
    def selects(self) -> bool:
        """Whether it gives places of numbers: right are all that hold the same numbers."""
        return self.node.op in KERNELS and KERNELS[self.node.op].selects

    def experts(self, inputs: tuple[Any, ...], arithmetic: Arithmetic, owner: object) -> tuple[Weight, Chosen] | None:
        """The experts' weight, and the rows that are multiplied with it; None of any other operation."""
        if self.node.op != "MUL_MAT_ID" or not isinstance(inputs[0], Weight):
            return None
        weight, x, ids = self._operands(inputs)
        return weight, Chosen(x, ids, arithmetic, owner)

    def finished(self, y: Numbers, arithmetic: Arithmetic) -> Numbers:
        """What was computed, as the node's tensor holds it."""
        kind = self.node.tensor.kind
        if arithmetic.ggml_products and kind.name != "F32" and self.node.op != "SET_ROWS":
            y = stored(y, kind)
        return y.reshape(self.shape)

    def _operands(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        shaped = (
            x if isinstance(x, Weight) else _as(x, whole=whole).reshape(shape)
            for x, (shape, whole) in zip(inputs, self.takes, strict=True)
        )
        return operands(self.node, tuple(shaped))

    def __call__(self, *inputs: Any, arithmetic: Arithmetic, **attributes: Any) -> Numbers:  # noqa: ANN401 - the operation's own
        """Compute it; what it gives is rounded to the type of the node's tensor in ggml's own arithmetic alone.

        Raises
        ------
        ModelError
            For an operation that is not known.
        """
        if self.node.op not in KERNELS:
            raise ModelError(f"firstdiff does not compute llama.cpp's operation {self.node.op} yet")
        try:
            with np.errstate(all="ignore"):
                return self._computed(self._operands(inputs), arithmetic, attributes)
        except ModelError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"firstdiff cannot compute llama.cpp's {self.node.op}: {reason:.100}") from error

    def _computed(self, read: tuple[Any, ...], arithmetic: Arithmetic, attributes: dict[str, Any]) -> Numbers:
        kind = self.node.tensor.kind
        if self.node.op == "SET_ROWS" and arithmetic.ggml_products:
            read = (stored(read[0], kind), *read[1:])  # of what is there already nothing is rounded again
        return self.finished(KERNELS[self.node.op].op(*read, arithmetic=arithmetic, **attributes), arithmetic)

    def sizes(self, inputs: tuple[Any, ...], arithmetic: Arithmetic, attributes: dict[str, Any]) -> Array | None:
        """How large the terms are that each number is a sum of; None where it is no sum that can cancel."""
        of = KERNELS[self.node.op].sizes
        if of is None:
            return None
        size = np.asarray(of(*self._operands(inputs), arithmetic=arithmetic, **attributes))
        whole = self.node.tensor.shape
        if self.node.op in STATES and size.size != np.prod(whole):  # outputs, and not the states behind them
            return None
        return np.broadcast_to(size, whole).reshape(self.shape)


def _as(x: Numbers, *, whole: bool) -> Numbers:
    """An operand as whole numbers, where the operation takes these: a trace holds numbers alone."""
    return x.astype(np.int64) if whole and x.dtype.kind == "f" else x
