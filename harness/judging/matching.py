"""Which node of llama.cpp's graph each tensor of a foreign dump is: by the weights that it reads, then by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.modules import FUSED, points_of, tensors_of
from firstdiff.dumps.tensors import Tensor
from firstdiff.dumps.understood import NameRow
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.model.graph.program import Input, Instruction, Program
from firstdiff.model.graph.reference import GraphArchitecture
from firstdiff.model.moves import MOVES
from firstdiff.model.operations import embed

CLOSE = 0.02
"""An embedding that is so near to what the graph makes of it is taken for that; bfloat16 is a tenth of it away."""

ACTIVATIONS = ("ffn_swiglu", "ffn_geglu")
"""What the last product of a feed-forward network is fed with."""

Place = tuple[str, int | None]


@dataclass(frozen=True, slots=True)
class Places:
    """The points of a model's graph, and which of them read which weights first.

    Parameters
    ----------
    points
        Each point and its layer.
    readers
        For each weight the first of its readers, and the last.
    operands
        For each weight the point that its first reader is fed with.
    """

    points: frozenset[Place]
    readers: Mapping[str, tuple[Place, Place]]
    operands: Mapping[str, Place]

    @classmethod
    def of(cls, program: Program) -> Places:
        """The points of a program."""
        readers: dict[str, tuple[Place, Place]] = {}
        operands: dict[str, Place] = {}
        gives: dict[int, str] = {}
        for number, made in enumerate(program.instructions):
            for name in made.reads if made.point else ():
                place = made.point, made.layer
                first, _ = readers.get(name, (place, place))
                readers[name] = first, place
                if first == place:
                    gives[number] = name
                if name not in operands and (fed := _fed(program, made)) is not None:
                    operands[name] = fed
                if (of := gives.get(_first(made), "")) and name in _parts(of):  # a scale or bias of a product's own
                    readers[of] = place, place
                    gives[number] = of
        points = frozenset((made.point, made.layer) for made in program.instructions if made.point)
        return cls(points, readers, operands)

    def of_names(self, names: Mapping[str, Site]) -> dict[str, Place]:
        """The points that a step's tensors are, by their names; what means none of this graph is left out.

        A name that may mean several points means the first one that no other name can only mean.
        """
        meant = {name: found for name, site in names.items() if (found := self._meant(name, site))}
        places = {name: found[0] for name, found in meant.items() if len(found) == 1}
        taken = set(places.values())
        for name, found in meant.items():
            if len(found) > 1:
                places[name] = next((place for place in found if place not in taken), found[0])
                taken.add(places[name])
        return places

    def _meant(self, name: str, site: Site) -> list[Place]:
        """The points that a name may mean, the likeliest first."""
        if found := self._of_module(name):
            return found
        if (site.point, site.layer) in self.points:
            return [(site.point, site.layer)]
        if found := self._of_tensor(name):
            return found
        if site.point in ACTIVATIONS:  # by whatever name the graph has it
            fed = self.operands.get(f"blk.{site.layer}.ffn_down.weight")
            return [fed] if fed is not None else []
        return []

    def _of_module(self, name: str) -> list[Place]:
        if (of := points_of(name)) is not None:
            block, points = of
            placed: list[Place] = [(p, block) for p in points if (p, block) in self.points]
            return placed[:1]
        found = tensors_of(name)
        if found is None:
            return []
        layer, tensors, is_input = found
        places: list[Place] = []
        for tensor in tensors:
            weight = f"{tensor}.weight" if layer is None else f"blk.{layer}.{tensor}.weight"
            if weight in self.readers:
                last = layer is None and tensor == "token_embd" and tensors[0] == "output"
                place = self.operands.get(weight) if is_input else self.readers[weight][last]
                places += [] if place is None else [place]
            elif tensor in FUSED and not is_input and self._parted(tensor, layer):
                places.append((FUSED[tensor], layer))
        return places[:1] if layer is None else places

    def _parted(self, tensor: str, layer: int | None) -> bool:
        """Whether the file has the parts of a fused product apart."""
        part = "attn_q" if tensor == "attn_qkv" else "ffn_gate"
        return f"blk.{layer}.{part}.weight" in self.readers

    def _of_tensor(self, name: str) -> list[Place]:
        """A tensor's own name, with or without what it ends in."""
        weight = name if name in self.readers else f"{name}.weight"
        return [self.readers[weight][0]] if weight in self.readers else []


def _first(made: Instruction) -> int:
    """The instruction whose result is the first operand; -1 for another operand."""
    operand = made.operands[0] if made.operands else None
    return operand if isinstance(operand, int) else -1


def _parts(weight: str) -> tuple[str, str]:
    """The tensors that a product with a weight may have beside it."""
    base = weight.removesuffix(".weight")
    return f"{base}.scale", f"{base}.bias"


def _fed(program: Program, made: Instruction) -> Place | None:
    """The point that an instruction is fed with first."""
    operand = made.operands[0] if made.operands else None
    while isinstance(operand, int):
        of = program.instructions[operand]
        if of.point:
            return of.point, of.layer
        if of.op not in MOVES or not of.operands:
            return None
        operand = of.operands[0]
    return None


def matched(model: Model, trace: Trace) -> Trace:
    """A trace with its tensors at the points of a model's graph; as it is where a file describes the architecture.

    What means no point of the graph stays under its own name, and is told of.
    """
    if not isinstance(model.written, GraphArchitecture) or not trace.steps:
        return trace
    program = model.written.prepare([step.tokens for step in trace.steps])[0]
    places = Places.of(program)
    names = {one.site: one.name for one in trace.named if one.site is not None}
    unread = {one.name for one in trace.unknown}
    tensors: dict[Site, Tensor] = {}
    understood, strangers = set[str](), list[str]()
    for step in range(len(trace.steps)):
        here = {names.get(site, site.key): site for site in trace.tensors if site.step == step}
        placed = places.of_names(here)
        for name, site in here.items():
            place = placed.get(name)
            at = site if place is None else Site(step, place[1], place[0])
            if place is not None:
                understood.add(name)
            elif name not in unread:
                strangers.append(name)
            if at not in tensors or at == site:
                tensors[at] = trace.tensors[site]
    unknown = tuple(one for one in trace.unknown if one.name not in understood)
    strangers = [name for name in dict.fromkeys(strangers) if name not in understood]
    notes = (*trace.notes, *([_told(strangers)] if strangers else []))
    return _embedded(model, program, replace(trace, tensors=tensors, unknown=unknown, notes=notes))


def meant(model: Model, rows: Sequence[NameRow]) -> list[NameRow]:
    """How names are understood that are of a model; as they are where a file describes the architecture."""
    if not isinstance(model.written, GraphArchitecture):
        return list(rows)
    places = Places.of(model.written.prepare([(0,)])[0])
    placed: dict[int, dict[str, Place]] = {}
    for step in {row.step for row in rows}:
        placed[step] = places.of_names({row.name: _site(row) for row in rows if row.step == step})
    found = []
    for row in rows:
        point, layer = placed[row.step].get(row.name, (None, row.layer))
        found.append(replace(row, point=point, layer=layer, nearest=None if point is not None else row.nearest))
    return found


def _site(row: NameRow) -> Site:
    """Where a trace holds a tensor."""
    return Site.of_key(row.name, row.step) if row.point is None else Site(row.step, row.layer, row.point)


def _told(strangers: list[str]) -> str:
    """Say which tensors are judged by nothing."""
    count = len(strangers)
    which = "1 recorded tensor has" if count == 1 else f"{count:,} recorded tensors have"
    return f"{which} no counterpart in llama.cpp's graph, such as {strangers[0]}: nothing is said about it"


def _embedded(model: Model, program: Program, trace: Trace) -> Trace:
    """A trace whose embedding is at the point that it is: before or behind the scale that some models have."""
    number = next((i for i, made in enumerate(program.instructions) if made.op is embed), None)
    if number is None or program.instructions[number].operands[0] is not Input.TOKENS:
        return trace
    made = program.instructions[number]
    reads = [x for x in program.instructions if number in x.operands]
    scaled = reads[0] if len(reads) == 1 else None
    if scaled is None or not scaled.point or scaled.op.__name__ != "scale":
        return trace
    plain = model.weights[made.reads[0]].gather(np.asarray(trace.steps[0].tokens, np.int64))
    behind = scaled.op(plain, arithmetic=F32, **scaled.attributes)
    before, after = (made.point, made.layer), (scaled.point, scaled.layer)
    for here, there, right, other in ((before, after, behind, plain), (after, before, plain, behind)):
        site = Site(0, here[1], here[0])
        recorded = trace[site] if site in trace and Site(0, there[1], there[0]) not in trace else None
        if recorded is None or recorded.size != plain.size:
            continue
        recorded = recorded.reshape(plain.shape)
        if _off(recorded, right) <= CLOSE < _off(recorded, other):
            moved = {
                Site(at.step, there[1], there[0]) if (at.point, at.layer) == here else at: tensor
                for at, tensor in trace.tensors.items()
            }
            return replace(trace, tensors=moved)
    return trace


def _off(x: np.ndarray, right: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(x - right) / np.linalg.norm(right))
