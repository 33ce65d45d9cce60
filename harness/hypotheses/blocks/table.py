"""Weights whose raw blocks are read wrongly, as hypotheses at every product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from firstdiff.hypotheses.blocks.buffers import BUFFER_FAULTS, BufferFault, shifted, shifts
from firstdiff.hypotheses.blocks.faults import BLOCK_FAULTS, BlockFault
from firstdiff.hypotheses.hypothesis import Change, Hypothesis, Scene, Values, with_input
from firstdiff.hypotheses.weights import PRODUCTS
from firstdiff.model.arithmetic import Array
from firstdiff.model.probe import Call

POINTS = (*PRODUCTS, "result_output", "embd")
BYTES = 1  # stage


def _decoded(fault: BlockFault) -> Hypothesis:
    ways = {(kind, way.name): way for way in fault.ways for kind in way.kinds}

    def change(call: Call, _scene: Scene, values: Values) -> Call | None:
        weight = call.inputs[1]
        way = ways.get((weight.kind.name, values["way"]))
        return None if way is None else with_input(call, 1, replace(weight, decode=way.decode))

    return _hypothesis(fault, change)


def _moved(fault: BufferFault) -> Hypothesis:
    ways = {(kind, way.name): way for way in fault.ways for kind in way.kinds}

    def change(call: Call, _scene: Scene, values: Values) -> Call | None:
        weight = call.inputs[1]
        way = ways.get((weight.kind.name, values["way"]))
        if way is None:
            return None
        raw = way.change(weight.raw, weight.kind, weight.shape[-1] // weight.kind.block)
        return with_input(call, 1, replace(weight, raw=raw))

    return _hypothesis(fault, change)


def _hypothesis(fault: BlockFault | BufferFault, change: Change) -> Hypothesis:
    def ways(call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
        kind = call.inputs[1].kind.name
        yield from ({"way": way.name} for way in fault.ways if kind in way.kinds)

    return Hypothesis(fault.id, POINTS, fault.says, fault.fix, change, ways, f"{fault.says} ({{way}})", stage=BYTES)


def _shifted(call: Call, scene: Scene, values: Values) -> Call | None:
    weight = call.inputs[1]
    raw = shifted(scene.model.gguf, weight.name, values["bytes"])
    return None if raw is None else with_input(call, 1, replace(weight, raw=raw))


def _shifts(call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, object]]:
    yield from ({"bytes": s.by, "because": s.name} for s in shifts(scene.model.gguf, call.inputs[1].name))


TABLE = (
    *map(_decoded, BLOCK_FAULTS.values()),
    *map(_moved, BUFFER_FAULTS.values()),
    Hypothesis(
        "weight-alignment",
        POINTS,
        "a weight's bytes taken from beside their place in the file",
        "begin at the end of the header, rounded up to 'general.alignment', and add each tensor's offset",
        _shifted,
        _shifts,
        "a weight's bytes taken {bytes:+d} bytes from their place ({because})",
        stage=BYTES,
        source="ollama/ollama#18130",
    ),
)
