"""llama.cpp's graph, node by node, as the scheduler's eval callback shows it: what each node reads and gives."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.engines import ggml
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.errors import CaptureError
from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import GGUF
from firstdiff.model.graph.nodes import VIEWS, Graph, Leaf, Node, Tensor
from firstdiff.model.graph.reference import Capture
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


@dataclass
class GraphHook:
    """The eval callback: notes every node of a step, and has none of them wait.

    Parameters
    ----------
    weights
        Names of the file's tensors.
    """

    weights: Container[str]
    failure: BaseException | None = None
    _nodes: list[Node] = field(default_factory=list, init=False)
    _leafs: dict[int, Leaf] = field(default_factory=dict, init=False)
    _tensors: dict[int, Tensor] = field(default_factory=dict, init=False)
    _computed: set[int] = field(default_factory=set, init=False)

    def __call__(self, address: int, ask: bool, _user: object) -> bool:  # noqa: FBT001 - ggml's signature
        """Note the node that ggml asks for; answer that it is not wanted."""
        if ask and self.failure is None:
            try:
                self._note(address)
            except BaseException as e:  # noqa: BLE001 - none may cross the C frames; it is raised after the decode
                self.failure = e
        return False

    def _note(self, address: int) -> None:
        t = ggml.Tensor.from_address(address)
        sources = tuple(None if s is None else self._tensor(s) for s in t.src)
        node = Node(_op(address), self._tensor(address), sources, tuple(t.op_params))
        self._nodes.append(node)
        for source in sources:
            root = None if source is None else source.root
            if root is not None and root not in self._computed and root not in self._leafs:
                tensor = self._tensor(root)
                lasts = tensor.name in self.weights or tensor.name.startswith("cache_")
                self._leafs[root] = Leaf(tensor, None if lasts else _values(root))
        self._computed.add(address)

    def _tensor(self, address: int) -> Tensor:
        if address not in self._tensors:
            self._tensors[address] = _tensor(address)
        return self._tensors[address]

    def finish(self) -> Graph:
        """The graph of the step that was run; ready for the next step afterwards."""
        graph = Graph(tuple(self._nodes), dict(self._leafs))
        self._nodes, self._leafs, self._tensors, self._computed = [], {}, {}, set()
        return graph


def capture_of(gguf: GGUF, *, threads: int = 1, log: Path | None = None) -> Capture:
    """What runs steps of a model through llama.cpp and gives the graph of each."""

    def capture(steps: Sequence[Sequence[int]], /) -> list[Graph]:
        ggml.check_layout()
        hook, graphs, position = GraphHook(gguf.tensors), [], 0
        with LlamaCpp(gguf.path, threads=threads, log=log) as engine:
            total, widest = sum(map(len, steps)), max(map(len, steps))
            with engine.context(total, widest, hook) as context:
                for tokens in steps:
                    context.decode(tokens, position)
                    graphs.append(hook.finish())
                    position += len(tokens)
        return graphs

    return capture


def _op(address: int) -> str:
    name: bytes = ggml.library().ggml_op_desc(address)
    return name.decode()


def _tensor(address: int) -> Tensor:
    t = ggml.Tensor.from_address(address)
    kind = TYPES.get(t.type)
    if kind is None:
        raise CaptureError(f"tensor {t.name.decode(errors='replace')!r} has ggml type {t.type}: not read yet")
    shape, strides = tuple(t.ne)[::-1], tuple(t.nb)[::-1]
    name = t.name.decode(errors="replace")
    return Tensor(name, kind, shape, strides, address, t.view_src or address, t.view_offs if t.view_src else 0)


def _node(address: int, op: str) -> Node:
    t = ggml.Tensor.from_address(address)
    sources = tuple(None if s is None else _tensor(s) for s in t.src)
    return Node(op, _tensor(address), sources, tuple(t.op_params))


def _values(address: int) -> npt.NDArray[Any]:
    """A copy of a tensor's numbers, whatever memory they lie in."""
    return read(address, _tensor(address))


def read(address: int, tensor: Tensor) -> npt.NDArray[Any]:
    """A copy of what is known to lie there."""
    raw = np.empty(tensor.nbytes, np.uint8)
    if raw.size:
        ggml.library().ggml_backend_tensor_get(address, raw.ctypes.data, 0, raw.size)
    return tensor.values(raw)
