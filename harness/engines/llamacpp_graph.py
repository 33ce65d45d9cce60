"""llama.cpp's graph, node by node, as the scheduler's eval callback shows it: what each node reads and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.engines import ggml
from firstdiff.errors import CaptureError
from firstdiff.model.errors import ModelError
from firstdiff.model.graph.nodes import VIEWS, Node, Tensor
from firstdiff.model.quants import TYPES
from firstdiff.model.weights import Weight

Operand = npt.NDArray[Any] | Weight | None


@dataclass(frozen=True, slots=True, eq=False)
class Ran:
    """A node that llama.cpp has run.

    Parameters
    ----------
    node
        Which.
    inputs
        What it read: numbers [ne3, ne2, ne1, ne0] as they were when it ran, or a weight of the file.
        None for what is not given, and for the node itself, into which a cast writes.
    output
        What it gave.
    unread
        Why its numbers could not be read; empty where they could.
    """

    node: Node
    inputs: tuple[Operand, ...]
    output: npt.NDArray[Any]
    unread: str = ""


@dataclass
class NodeHook:
    """The eval callback: shows every node that computes something, as soon as it has run.

    Asked for every node, the scheduler runs each alone and in turn, so that when it asks, everything before the node
    has run, and nothing after it: sources are what the node will read. A tensor's address is a name for it only within
    one graph, and the callback is not told where one ends, so that nothing is kept by address.

    Parameters
    ----------
    weights
        The file's tensors, which are not read from memory.
    visit
        Is called with each node.
    """

    weights: Mapping[str, Weight]
    visit: Callable[[Ran], None]
    failure: BaseException | None = None
    _reads: tuple[Operand, ...] | str = field(default=(), init=False)

    def __call__(self, address: int, ask: bool, _user: object) -> bool:  # noqa: FBT001 - ggml's signature
        """Answer ggml that every node is wanted (`ask`), and then, with its data ready, whether to go on."""
        if self.failure is not None:
            return False
        try:
            if ask:
                self._reads = self._operands(address)
            elif (op := _op(address)) not in VIEWS:
                self.visit(self._ran(address, op))
        except BaseException as e:  # noqa: BLE001 - none may cross the C frames; it is raised after the decode
            self.failure = e
            return False
        return True

    def _ran(self, address: int, op: str) -> Ran:
        node = _node(address, op)
        if isinstance(self._reads, str):
            return Ran(node, (), np.empty(0, np.float32), self._reads)
        try:
            return Ran(node, self._reads, _values(address))
        except ModelError as e:
            return Ran(node, (), np.empty(0, np.float32), str(e))

    def _operands(self, address: int) -> tuple[Operand, ...] | str:
        """What a node is about to read; why it cannot be read, where a type is not known."""
        if _op(address) in VIEWS:
            return ()
        sources = list(ggml.Tensor.from_address(address).src)
        while sources and sources[-1] is None:
            sources.pop()
        try:
            return tuple(None if s is None or s == address else self._operand(s) for s in sources)
        except ModelError as e:
            return str(e)

    def _operand(self, address: int) -> Operand:
        name = ggml.Tensor.from_address(address).name.decode(errors="replace")
        if name in self.weights and _op(address) == "NONE":
            return self.weights[name]
        return _values(address)


def _op(address: int) -> str:
    name: bytes = ggml.library().ggml_op_desc(address)
    return name.decode()


def _tensor(address: int) -> Tensor:
    t = ggml.Tensor.from_address(address)
    kind = TYPES.get(t.type)
    if kind is None:
        raise CaptureError(f"tensor {t.name.decode(errors='replace')!r} has ggml type {t.type}: not read yet")
    shape, strides = tuple(t.ne)[::-1], tuple(t.nb)[::-1]
    return Tensor(t.name.decode(errors="replace"), kind, shape, strides)


def _node(address: int, op: str) -> Node:
    t = ggml.Tensor.from_address(address)
    sources = tuple(None if s is None else _tensor(s) for s in t.src)
    return Node(op, _tensor(address), sources, tuple(t.op_params))


def _values(address: int) -> npt.NDArray[Any]:
    """A copy of a tensor's numbers, whatever memory they lie in."""
    tensor = _tensor(address)
    raw = np.empty(tensor.nbytes, np.uint8)
    if raw.size:
        ggml.library().ggml_backend_tensor_get(address, raw.ctypes.data, 0, raw.size)
    return tensor.values(raw)
