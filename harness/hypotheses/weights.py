"""Weights that are not the call's own: another layer's, another product's, a bias left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from difflib import SequenceMatcher

import numpy as np

from firstdiff.dumps.points import Kind
from firstdiff.hypotheses.hypothesis import Apart, Change, Hypothesis, Scene, Values
from firstdiff.hypotheses.where import LOGITS, Where
from firstdiff.model.arithmetic import Array
from firstdiff.model.operations import layer_norm, linear, rms_norm
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

TENSOR, BIAS = 0, 7  # stages


def named(weight: Weight) -> tuple[int | None, str]:
    """Layer and name within it: ``blk.3.attn_q.weight`` -> 3, ``attn_q.weight``."""
    parts = weight.name.split(".", 2)
    return (int(parts[1]), parts[2]) if parts[0] == "blk" else (None, weight.name)


def _of_other_layer(call: Call, scene: Scene, values: Values) -> Call | None:
    own = call.argument("weight")
    layer, name = named(own) if own is not None else (None, "")
    if layer is None or not 0 <= layer + values["layers"] < scene.model.hp.n_layer:
        return None
    other = scene.model.weights.layer(layer + values["layers"]).get(name)
    if other is None or other.shape != own.shape:
        return None
    return call.with_arguments(weight=other.held_in(own.held))


def _other_layers(_call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, int]]:
    for distance in range(1, scene.model.hp.n_layer):
        yield from ({"layers": distance}, {"layers": -distance})


def _swapped(call: Call, scene: Scene, values: Values) -> Call | None:
    """By a name within the layer (``attn_k.weight``), or one of the whole file."""
    name, weights = values["tensor"], scene.model.weights
    if call.layer is not None and not name.startswith("blk."):
        weights = weights.layer(call.layer)
    other = weights.get(name)
    own = call.argument("weight")
    if other is None or own is None or other.shape != own.shape or other.name == own.name:
        return None
    return call.with_arguments(weight=other.held_in(own.held))


def _same_shape(call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    weight = call.argument("weight")
    if weight is None:
        return
    layer, own = named(weight)
    prefix = "" if layer is None else f"blk.{layer}."
    ends = ("blk.0.", f"blk.{scene.model.hp.n_layer - 1}.")  # what a weight outside the layers can be taken for
    names = [
        name.removeprefix(prefix)
        for name, info in scene.model.gguf.tensors.items()
        if info.shape == weight.shape
        and name != weight.name
        and name.endswith(".weight")
        and (name.startswith(prefix) if prefix else not name.startswith("blk.") or name.startswith(ends))
    ]
    # Names that look alike are taken for each other: attn_k's for attn_v's, and ffn_up's for ffn_gate's.
    yield from ({"tensor": name} for name in sorted(names, key=lambda n: -SequenceMatcher(None, own, n).ratio()))


def _untied(call: Call, scene: Scene, _values: Values) -> Call | None:
    weight, other = call.argument("weight"), scene.model.weights.get("token_embd.weight")
    if other is None or weight.name == other.name or weight.shape != other.shape:
        return None
    return call.with_arguments(weight=other.held_in(weight.held))


# Biases


def _biased(factor: float) -> Change:
    def change(call: Call, _scene: Scene, _values: Values) -> Call | None:
        bias = call.argument("bias")
        if bias is None:
            return None
        return call.with_arguments(bias=replace(bias, dense=bias.values() * np.float32(factor)) if factor else None)

    return change


TABLE = (
    Hypothesis(
        "weight-of-other-layer",
        Where((linear, rms_norm, layer_norm), inside=True),
        "the weight of another layer",
        "load 'blk.N.*' for layer N, counted from 0",
        _of_other_layer,
        _other_layers,
        "the weight of the layer {layers:+d}",
        stage=TENSOR,
        apart=Apart.WEIGHT,
    ),
    Hypothesis(
        "weight-swapped",
        Where((linear, rms_norm, layer_norm), but=(Kind.LOGITS,)),
        "the weight of another product",
        "load each weight by its own name",
        _swapped,
        _same_shape,
        "'{tensor}' in place of its own weight",
        stage=TENSOR,
        apart=Apart.WEIGHT,
        source="nntrainer/nntrainer#4194",
    ),
    Hypothesis(
        "head-untied",
        LOGITS,
        "the token embedding taken for the output matrix, although the file has one",
        "use 'output.weight' where the file has it",
        _untied,
        stage=TENSOR,
        apart=Apart.WEIGHT,
        source="pegainfer-project/pegainfer#544",
    ),
    Hypothesis(
        "bias-missing",
        Where((linear,)),
        "the product without its bias",
        "add the bias that the file has",
        _biased(0),
        stage=BIAS,
        apart=Apart.WEIGHT,
        source="sbryngelson/ANEForge#253",
    ),
    Hypothesis(
        "bias-twice",
        Where((linear,)),
        "the bias added twice",
        "add the bias once",
        _biased(2),
        stage=BIAS,
        apart=Apart.WEIGHT,
    ),
)
