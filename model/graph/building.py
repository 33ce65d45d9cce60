"""Building the calls of a step: what each memory of a graph holds now, and views of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from firstdiff.model import moves
from firstdiff.model.graph.names import Name, is_own, name_of, told_apart
from firstdiff.model.graph.nodes import Graph, Tensor
from firstdiff.model.graph.program import Held, Instruction, Named, Operand, Program, Seen, Shape, located
from firstdiff.model.graph.reading import Reading
from firstdiff.model.graph.roles import role_of
from firstdiff.model.operations import Operation


@dataclass
class History:
    """What lowering a step has to know of the steps before it.

    Parameters
    ----------
    cells
        Of each cache the cells in the order in which they were written, by its name.
    axes
        How many axes each tensor has, as a step of several tokens shows, by its name.
    """

    cells: dict[str, tuple[int, ...]] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Memory:
    """The tensor that a memory is, and the instruction whose value it holds now."""

    tensor: Tensor
    value: int


class Builder:
    """Collects the instructions of one step."""

    def __init__(self, graph: Graph, tokens: int, history: History) -> None:
        self.graph, self.tokens, self.history = graph, tokens, history
        self.reading = Reading(graph)
        self.keys = _keys(graph)
        self.made: list[Instruction] = []
        self.memory: dict[int, Memory] = {}
        self.sites: dict[int, list[tuple[Tensor, int]]] = {}  # views that are sites, by memory
        self.kept: dict[str, int] = {}
        self.done: set[int] = set()  # nodes that are a part of an instruction of another node
        self._names: dict[int, Name] = {}
        self._views: dict[int, dict[object, int]] = {}

    def emit(
        self,
        op: Operation,
        operands: tuple[Operand, ...],
        shape: Shape,
        attributes: Mapping[str, Any] | None = None,
        *,
        seen: Seen | None = None,
        name: Name | None = None,
    ) -> int:
        """Add an instruction and return its number."""
        self.made.append(Instruction(op, operands, attributes or {}, shape, seen=seen))
        if name is not None:
            self._names[len(self.made) - 1] = name
        return len(self.made) - 1

    def point_of(self, operand: Operand) -> str | None:
        """What the value is called that an operand shows; None where it has no name."""
        number = self._named(operand)
        return None if number is None else self._names[number].point

    def _named(self, operand: Operand) -> int | None:
        while isinstance(operand, int) and operand not in self._names and self.made[operand].op in moves.MOVES:
            operand = self.made[operand].operands[0] if self.made[operand].operands else None
        return operand if isinstance(operand, int) and operand in self._names else None

    def rename(self, operand: Operand, point: str | None) -> None:
        """Give what an operand shows the name of a point, unless llama.cpp has named it."""
        number = self._named(operand)
        if point is not None and number is not None and not self._names[number].own:
            self._names[number] = replace(self._names[number], point=point, own=True)

    def shaped(self, operand: Operand, shape: Shape) -> Operand:
        """An operand in another shape."""
        if not isinstance(operand, int) or self.made[operand].shape == shape:
            return operand
        return self.emit(moves.reshaped, (operand,), shape, {"shape": shape})

    def read(self, tensor: Tensor) -> Operand:
        """What a tensor holds now, its numbers in the order of its axes."""
        if (
            (leaf := self.graph.leafs.get(tensor.root)) is not None
            and leaf.values is None
            and not is_memory(leaf.tensor)
        ):
            if tensor.at == tensor.root:
                return Named(leaf.tensor.name)
            return self._viewed(Named(leaf.tensor.name), tensor)
        memory = self.held(tensor.root)
        for view, value in reversed(self.sites.get(tensor.root, [])):
            if (seen := _within(tensor, view)) is not None:
                start, steps = seen
                if start == 0 and steps is None:
                    return value
                return self._viewed(value, tensor, start, steps)
        if tensor.contiguous and not tensor.offset and tensor.size == memory.tensor.size:
            return memory.value
        return self._viewed(memory.value, tensor)

    def _viewed(self, of: int | Named, tensor: Tensor, start: int | None = None, steps: Shape | None = None) -> int:
        start = tensor.start if start is None else start
        steps = tensor.steps if steps is None else steps
        known, key = self._views.setdefault(tensor.root, {}), (of, start, steps, tensor.shape)
        if key not in known:
            shape = self.shape(tensor) if tensor.shape[0] == 1 else tensor.shape
            view = {"start": start, "steps": steps[-len(shape) :], "shape": shape}
            known[key] = self.emit(moves.viewed, (of,), shape, view)
        return known[key]

    def held(self, root: int) -> Memory:
        """What a memory holds: what was written to it, or what it held before the step."""
        if root not in self.memory:
            leaf = self.graph.leafs[root]
            shape = leaf.tensor.shape
            if leaf.values is None:
                held = Held(self.keys[root])
                value = self.emit(moves.remembered, (held,), shape, {"shape": shape})
            else:
                value = self.emit(moves.given, (), shape, {"value": leaf.values})
            self.memory[root] = Memory(leaf.tensor, value)
        return self.memory[root]

    def write(self, tensor: Tensor, value: int) -> None:
        """Note that a tensor holds the value of an instruction from now on."""
        if tensor.root == tensor.at:
            self.memory[tensor.at] = Memory(tensor, value)
            return
        memory = self.held(tensor.root)
        if not (tensor.contiguous and not tensor.offset and tensor.size == memory.tensor.size):
            view = {"start": tensor.start, "steps": tensor.steps, "at": tensor.shape}
            value = self.emit(moves.put, (memory.value, value), self.made[memory.value].shape, view)
        self.memory[tensor.root] = Memory(memory.tensor, value)
        self._views.pop(tensor.root, None)
        self.sites.pop(tensor.root, None)
        leaf = self.graph.leafs.get(tensor.root)
        if leaf is not None and leaf.values is None:
            self.kept[self.keys[tensor.root]] = value

    def shape(self, tensor: Tensor) -> Shape:
        """A tensor's shape without leading axes of one, but for that of its tokens."""
        shape, key = tensor.shape, tensor.name
        if shape[0] > 1:
            return (shape[0] * shape[1], *shape[2:])
        if self.tokens > 1 or shape[1] > 1:
            axes = 3 if shape[1] > 1 else 2
            if self.tokens > 1:
                self.history.axes[key] = axes
        else:
            axes = self.history.axes.get(key, 2)
        return shape[-axes:]

    def emit_at(
        self,
        last: int,
        op: Operation,
        operands: tuple[Operand, ...],
        shape: Shape,
        **attributes: Any,  # noqa: ANN401 - the operation's own
    ) -> None:
        """An instruction with the result of a node, perhaps a later one than is at hand."""
        value = self.emit(op, operands, shape, attributes, seen=Seen(last), name=self.name(last))
        self.write(self.graph.nodes[last].tensor, value)
        self.done.add(last)

    def name(self, number: int) -> Name:
        """What a node's result is called: its role, its own name, or that of the one view that reads it."""
        node = self.graph.nodes[number]
        own = name_of(node)
        if not own.own:
            views = [
                n
                for n in map(self.graph.nodes.__getitem__, self.reading.children.get(node.tensor.at, ()))
                if n.op in ("RESHAPE", "VIEW") and n.tensor.size == node.tensor.size and is_own(n.tensor.name)
            ]
            own = replace(name_of(views[0]), op=node.op) if len(views) == 1 else own
        return role_of(node, own)

    def program(self, result: int) -> Program:
        """The instructions with their points."""
        order = [i for i in sorted(self._names) if self._names[i].own or self.made[i].reads]
        places = dict(zip(order, told_apart([self._names[i] for i in order]), strict=True))
        layer: int | None = None
        instructions = []
        for number, made in enumerate(self.made):
            point, layer = places.get(number, ("", layer))
            seen = located(made.seen, self.graph) if point and made.seen is not None else None
            instructions.append(replace(made, point=point, layer=layer, seen=seen))
        return Program(tuple(instructions), result, self.kept)


def _keys(graph: Graph) -> dict[int, str]:
    """What each memory is called from step to step: by its name, and by its number where several have the same."""
    keys: dict[int, str] = {}
    counts: dict[str, int] = {}
    for at, leaf in graph.leafs.items():
        name = leaf.tensor.name
        keys[at] = f"{name}#{counts[name]}" if name in counts else name
        counts[name] = counts.get(name, 0) + 1
    return keys


def is_memory(tensor: Tensor) -> bool:
    """Whether a leaf is memory that lasts from step to step, as llama.cpp names it."""
    return tensor.name.startswith("cache_")


def _within(tensor: Tensor, view: Tensor) -> tuple[int, Shape | None] | None:
    """Where a tensor lies in the numbers of a view of the same memory, and in which steps; None where not only there.

    The steps are None where it is the view's numbers in the same order.
    """
    own = [(n, s) for n, s in zip(tensor.shape, tensor.steps, strict=True) if n > 1]
    its = [(n, s) for n, s in zip(view.shape, view.steps, strict=True) if n > 1]
    if tensor.start == view.start and tensor.size == view.size and _merged(own) == _merged(its):
        return 0, None
    inside = (*np.cumprod(view.shape[:0:-1])[::-1], 1)
    known = {s: (n, int(i)) for n, s, i in zip(view.shape, view.steps, inside, strict=True) if n > 1}
    if tensor.start != view.start or any(s not in known or known[s][0] != n for n, s in own):
        return None
    steps = tuple(0 if n == 1 else known[s][1] for n, s in zip(tensor.shape, tensor.steps, strict=True))
    return 0, steps


def _merged(axes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Axes with those put together that lie one behind another."""
    merged: list[tuple[int, int]] = []
    for n, step in axes:
        if merged and merged[-1][1] == n * step:
            merged[-1] = (merged[-1][0] * n, step)
        else:
            merged.append((n, step))
    return merged
