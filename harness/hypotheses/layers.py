"""Layers that never ran, or whose outputs nothing used: what follows took the output of an earlier layer."""

from __future__ import annotations

from collections.abc import Iterator

from firstdiff.dumps import Site
from firstdiff.dumps.points import OUTSIDE, Kind, kind_of
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values
from firstdiff.hypotheses.where import Where
from firstdiff.model.arithmetic import Array
from firstdiff.model.operations import Operation, add, rms_norm
from firstdiff.model.probe import Call

STREAM: dict[Operation, str] = {rms_norm: "x", add: "b"}
"""The operand that is the residual stream."""


def _earlier(call: Call, scene: Scene, values: Values) -> Call | None:
    """The call on the stream as it was after an earlier layer; None for one that is not fed by a layer."""
    point, name = _output(call, scene), STREAM[call.op]
    if point is None:
        return None
    other = scene.lookup(Site(call.step, values["layer"], point))
    if other is None or other.shape != call.argument(name).shape or values["layer"] >= _layer(call, scene) - 1:
        return None
    return call.with_arguments(**{name: other})


def _layers(call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, object]]:
    """Earlier layers whose output is known, the last first, and what became of those between."""
    point, own = _output(call, scene), _layer(call, scene)
    if point is None:
        return
    for layer in range(own - 2, -1, -1):
        if scene.lookup(Site(call.step, layer, point)) is not None:
            between = range(layer + 1, own)
            ran = any(scene.lookup(site) is not None for site in scene.ran if _is_between(site, call.step, between))
            yield {"layer": layer, "point": point, "so": _became(between, ran=ran)}


def _became(between: range, *, ran: bool) -> str:
    one = len(between) == 1
    named = f"layer {between[0]}" if one else f"layers {between[0]} to {between[-1]}"
    return f"{named} {'was' if one else 'were'} passed over" if ran else f"{named} never ran"


def _is_between(site: Site, step: int, layers: range) -> bool:
    return site.step == step and site.layer is not None and site.layer in layers


def _layer(call: Call, scene: Scene) -> int:
    """The number of layers before a call."""
    return scene.model.hp.n_layer if call.layer is None else call.layer


def _output(call: Call, scene: Scene) -> str | None:
    """The point that the layer before gives to a call; None where the call does not read it.

    The first norm of a layer reads it, the first sum, and the norm after the last layer.
    """
    layer, here = _layer(call, scene), scene.before(call)
    if call.layer is not None:
        inside = [point for point in here if point not in OUTSIDE]
        if inside if call.op is rms_norm else any(kind_of(point) is Kind.SUM for point in inside):
            return None
        here = scene.before(call, layers=-1) if layer else []
    sums = [point for point in here if kind_of(point) is Kind.SUM]
    return sums[-1] if sums else None


TABLE = (
    Hypothesis(
        "layers-not-run",
        Where((rms_norm, add), only=(Kind.NORM, Kind.SUM)),
        "the output of an earlier layer taken: the layers between were passed over",
        "run every layer of the file: read their number from its 'block_count'",
        _earlier,
        _layers,
        "it took {point} of layer {layer}: {so}",
        stage=1,
        source="paiml/aprender#3527",
    ),
)
