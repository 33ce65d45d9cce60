"""llama.cpp's graph in the place of an architecture's file: it drives the same probes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from firstdiff.model.architecture import Hyperparameters, Nodes, Rotation, Tensor
from firstdiff.model.errors import ModelError
from firstdiff.model.fields import Fields
from firstdiff.model.gguf import GGUF
from firstdiff.model.graph.building import History
from firstdiff.model.graph.checking import check
from firstdiff.model.graph.lowering import lowered
from firstdiff.model.graph.nodes import Graph
from firstdiff.model.graph.program import Held, Input, Instruction, Named, Operand, Program
from firstdiff.model.operations import rope
from firstdiff.model.probe import Probe
from firstdiff.model.value import Value
from firstdiff.model.weights import Weights

Tokens = tuple[int, ...]


class Capture(Protocol):
    """Runs some steps through llama.cpp and returns the graph of each."""

    def __call__(self, steps: Sequence[Tokens], /) -> Sequence[Graph]: ...  # noqa: D102


@dataclass(slots=True)
class Remembered:
    """What earlier steps left in llama.cpp's memories, by their names, and the tokens of these steps."""

    memories: dict[str, Value] = field(default_factory=dict)
    steps: tuple[Tokens, ...] = ()


class GraphArchitecture:
    """An architecture that is llama.cpp's own graph.

    Parameters
    ----------
    gguf
        The file, with whose tensors the graphs must agree.
    capture
        Gives the graphs of some steps.
    why
        Why it is taken, in words; empty where it was asked for.
    """

    def __init__(self, gguf: GGUF, capture: Capture, why: str = "") -> None:
        self.why = why
        self._read: set[str] = set()
        self._weights = {name: four(info.shape) for name, info in gguf.tensors.items()}
        self.NODES: Nodes = {}
        self._capture = capture
        self._programs: deque[tuple[tuple[Tokens, ...], tuple[Program, ...]]] = deque(maxlen=4)
        self._rotation: tuple[Rotation | None] | None = None

    def Cache(self) -> Remembered:  # noqa: N802 - as a module of model/architectures has it
        """What a later step reads back, empty."""
        return Remembered()

    def prepare(self, steps: Sequence[Sequence[int]]) -> tuple[Program, ...]:
        """The calls of some steps.

        Raises
        ------
        ModelError
            For a graph that cannot be followed.
        """
        wanted = tuple(tuple(step) for step in steps)
        for known, programs in self._programs:
            if known[: len(wanted)] == wanted:
                return programs[: len(wanted)]
        history = History()
        graphs = self._capture(wanted)
        for graph in graphs:
            check(graph, self._weights)
            self._read |= {leaf.tensor.name for leaf in graph.leafs.values()}
        made = tuple(lowered(g, len(s), history) for g, s in zip(graphs, wanted, strict=True))
        self._programs.append((wanted, made))
        return made

    @property
    def unread(self) -> tuple[str, ...]:
        """Tensors of the file that no graph has read yet."""
        return tuple(name for name in self._weights if name not in self._read)

    def forget(self) -> None:
        """Forget the calls of all steps."""
        self._programs.clear()

    def read(self, fields: Fields) -> Hyperparameters:
        """Read what the usual keys say; what is not there is taken from the shapes, or 1."""
        return hyperparameters(fields.gguf)

    def tensors(self, _hp: Hyperparameters) -> Iterator[Tensor]:
        """Nothing: llama.cpp knows which tensors it reads."""
        return iter(())

    def rotation(self, _hp: Hyperparameters) -> Rotation | None:
        """How queries and keys are rotated, where all layers do it in one way but for the base."""
        if self._rotation is None:
            self._rotation = (_rotation(self.prepare([(0,)])[0]),)
        return self._rotation[0]

    def forward(
        self,
        probe: Probe,
        tokens: Sequence[int],
        positions: Sequence[int],
        w: Weights,
        _hp: Hyperparameters,
        cache: Remembered,
    ) -> Value:
        """One step: tokens [token] at positions [token] -> logits [token, n_vocab]; `cache` grows by the step."""
        cache.steps = (*cache.steps, tuple(tokens))
        program = self.prepare(cache.steps)[-1]
        values: dict[int, Value] = {}
        given = {Input.TOKENS: tuple(tokens), Input.POSITIONS: tuple(positions)}

        def of(operand: Operand) -> Any:  # noqa: ANN401 - a value, a weight, tokens
            if isinstance(operand, int):
                return values[operand]
            if isinstance(operand, Named):
                return w[operand.name]
            if isinstance(operand, Held):
                return cache.memories.get(operand.name)
            return None if operand is None else given[operand]

        dying = _dying(program)
        for number, made in enumerate(program.instructions):
            probe.layer = made.layer
            values[number] = probe(made.point or None, made.op, *map(of, made.operands), **made.attributes)
            for dead in dying.get(number, ()):
                del values[dead]
        cache.memories |= {name: values[number] for name, number in program.kept.items()}
        probe.layer = None
        return values[program.result]


def four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A shape with as many leading axes of one as ggml has."""
    return ((1,) * (4 - len(shape)) + shape)[:4]  # type: ignore[return-value]


def _dying(program: Program) -> Mapping[int, list[int]]:
    """After which instruction which values are read no more."""
    dying: dict[int, list[int]] = {}
    for number, last in enumerate(program.last):
        dying.setdefault(last, []).append(number)
    return dying


def _rotation(program: Program) -> Rotation | None:
    turned: dict[str, tuple[Instruction, str]] = {}
    for made in program.instructions:
        source = made.operands[0] if made.op is rope else None
        if isinstance(source, int) and made.point not in turned:
            of = source
            while not program.instructions[of].point:
                before = [x for x in program.instructions[of].operands if isinstance(x, int)]
                if len(before) != 1:
                    break
                of = before[0]
            turned[made.point] = made, program.instructions[of].point
    first = next((made for made, _ in turned.values()), None)
    if first is None or len({made.attributes["pairing"] for made, _ in turned.values()}) > 1:
        return None
    attributes = first.attributes
    factors = next((name for made, _ in turned.values() for name in made.reads), None)
    return Rotation(
        attributes["pairing"],
        attributes.get("dim", first.shape[-1]),
        attributes["base"],
        attributes["scale"],
        {point: source for point, (_, source) in turned.items()},
        factors,
    )


def hyperparameters(gguf: GGUF) -> Hyperparameters:
    """What a file says in the usual keys.

    Raises
    ------
    ModelError
        For a file without a token embedding.
    """
    name = gguf.metadata.get("general.architecture")

    def number(key: str, otherwise: int) -> int:
        found: Any = gguf.metadata.get(f"{name}.{key}")
        many = list(found) if hasattr(found, "__iter__") and not isinstance(found, str) else [found]
        numbers = [int(n) for n in many if isinstance(n, int) or hasattr(n, "dtype")]
        return max([n for n in numbers if n > 0], default=otherwise)

    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:  # noqa: PLR2004 - a matrix
        raise ModelError(f"{gguf.path}: tensor 'token_embd.weight' is missing: the file is not a whole model")
    n_embd = number("embedding_length", embedding.shape[1])
    n_head = number("attention.head_count", 1)
    return Hyperparameters(
        n_vocab=embedding.shape[0],
        n_ctx_train=number("context_length", 1 << 20),
        n_embd=n_embd,
        n_layer=number("block_count", 1),
        n_head=n_head,
        n_head_kv=number("attention.head_count_kv", n_head),
        head_dim=number("attention.key_length", max(1, n_embd // n_head)),
        n_ff=number("feed_forward_length", 1),
    )
