"""What a captured graph becomes: instructions, each of which is one call of a probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from firstdiff.model.graph.nodes import Graph, Tensor
from firstdiff.model.operations import Operation

Shape = tuple[int, ...]


class Input(Enum):
    """What a step is given."""

    TOKENS = "tokens"
    POSITIONS = "positions"


@dataclass(frozen=True, slots=True)
class Named:
    """A weight of the file, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Held:
    """What earlier steps left in a memory, by its name; None before the first step."""

    name: str


Operand = int | Named | Held | Input | None
"""An instruction's number, or something that no instruction computes."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Where llama.cpp has an instruction's result.

    Parameters
    ----------
    node
        The node of the graph.
    place
        The operand of it that is the result; None where its own result is.
    axes
        In which order the last three axes of the tensor are the result's.
    cells
        Of positions the cells that hold them, along the result's axis `along`; None for all.
    factor
        What llama.cpp has multiplied the result by.
    tensor
        The tensor, as far as it is needed.
    """

    node: int
    place: int | None = None
    axes: tuple[int, int, int] = (0, 1, 2)
    cells: tuple[int, ...] | None = None
    along: int = 0
    factor: float = 1.0
    tensor: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """One call of the probe.

    Parameters
    ----------
    op, operands, attributes
        What is computed.
    shape
        Of the result.
    point, layer
        The result's name; empty for one that nobody records.
    seen
        Where llama.cpp has this result; None where it has it nowhere.
    """

    op: Operation
    operands: tuple[Operand, ...]
    attributes: Mapping[str, Any]
    shape: Shape
    point: str = ""
    layer: int | None = None
    seen: Seen | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the weights that it reads."""
        return tuple(x.name for x in self.operands if isinstance(x, Named))


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The calls of one step.

    Parameters
    ----------
    instructions
        In execution order.
    result
        The number of the instruction whose value is the step's: the logits, as a rule.
    kept
        What stays in each memory for later steps, by the memory's name.
    last
        For each instruction the number of the last one that reads its value.
    """

    instructions: tuple[Instruction, ...]
    result: int
    kept: Mapping[str, int]
    last: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        last = list(range(len(self.instructions)))
        for number, instruction in enumerate(self.instructions):
            for operand in instruction.operands:
                if isinstance(operand, int):
                    last[operand] = number
        for number in (self.result, *self.kept.values()):
            last[number] = len(self.instructions)
        object.__setattr__(self, "last", tuple(last))


def located(seen: Seen, graph: Graph) -> Seen:
    """Where llama.cpp has a result, with the tensor that holds it, cut to the cells that are in use."""
    node = graph.nodes[seen.node]
    tensor = node.tensor if seen.place is None else node.sources[seen.place]
    if tensor is None:
        return seen
    if seen.cells is not None:
        axis = 1 + seen.axes[seen.along]
        shape = tuple(min(n, max(seen.cells) + 1) if i == axis else n for i, n in enumerate(tensor.shape))
        if axis < 3 or tensor.kind.block == 1:  # noqa: PLR2004 - the last axis, whose numbers may lie in blocks
            tensor = replace(tensor, shape=shape)  # type: ignore[arg-type]
    return replace(seen, tensor=tensor)
