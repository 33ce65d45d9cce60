"""Weights whose raw blocks are read wrongly, as hypotheses at every product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from firstdiff.hypotheses.blocks.buffers import BUFFER_FAULTS, BufferFault, shifted, shifts
from firstdiff.hypotheses.blocks.faults import BLOCK_FAULTS, BlockFault
from firstdiff.hypotheses.hypothesis import Apart, Change, Hypothesis, Scene, Values
from firstdiff.hypotheses.where import Where
from firstdiff.model.arithmetic import Array
from firstdiff.model.operations import embed, linear
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

WHERE = Where((linear, embed))
BYTES = 1  # stage


def _decoded(fault: BlockFault) -> Hypothesis:
    ways = {(kind, way.name): way for way in fault.ways for kind in way.kinds}

    def change(call: Call, _scene: Scene, values: Values) -> Call | None:
        weight = call.argument("weight")
        way = ways.get((weight.kind.name, values["way"]))
        return None if way is None else call.with_arguments(weight=replace(weight, decode=way.decode))

    return _hypothesis(fault, change)


def _moved(fault: BufferFault) -> Hypothesis:
    ways = {(kind, way.name): way for way in fault.ways for kind in way.kinds}

    def change(call: Call, _scene: Scene, values: Values) -> Call | None:
        weight = call.argument("weight")
        way = ways.get((weight.kind.name, values["way"]))
        if way is None:
            return None
        change = way.change

        def moved(weight: Weight) -> Weight:
            return replace(weight, raw=change(weight.raw, weight.kind, weight.shape[-1] // weight.kind.block))

        return call.with_arguments(weight=weight.read_as(moved))

    return _hypothesis(fault, change)


def _hypothesis(fault: BlockFault | BufferFault, change: Change) -> Hypothesis:
    def ways(call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
        kind = call.argument("weight").kind.name
        yield from ({"way": way.name} for way in fault.ways if kind in way.kinds)

    found = f"{fault.says} ({{way}})"
    return Hypothesis(fault.id, WHERE, fault.says, fault.fix, change, ways, found, stage=BYTES, apart=Apart.WEIGHT)


def _shifted(call: Call, scene: Scene, values: Values) -> Call | None:
    gguf = scene.model.gguf

    def moved(weight: Weight) -> Weight | None:
        raw = shifted(gguf, weight.name, values["bytes"]) if weight.name in gguf.tensors else None
        return None if raw is None else replace(weight, raw=raw)

    weight = call.argument("weight").read_as(moved)
    return None if weight is None else call.with_arguments(weight=weight)


def _shifts(call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, object]]:
    name, gguf = call.argument("weight").name, scene.model.gguf
    if name in gguf.tensors:  # and none that an architecture has joined of several
        yield from ({"bytes": s.by, "because": s.name} for s in shifts(gguf, name))


TABLE = (
    *map(_decoded, BLOCK_FAULTS.values()),
    *map(_moved, BUFFER_FAULTS.values()),
    Hypothesis(
        "weight-alignment",
        WHERE,
        "a weight's bytes taken from beside their place in the file",
        "begin at the end of the header, rounded up to 'general.alignment', and add each tensor's offset",
        _shifted,
        _shifts,
        "a weight's bytes taken {bytes:+d} bytes from their place ({because})",
        stage=BYTES,
        apart=Apart.WEIGHT,
        source="ollama/ollama#18130",
    ),
)
