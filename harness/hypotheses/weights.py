"""Weights loaded wrongly: another order, another tensor, a bias left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses.hypothesis import Change, Hypothesis, Scene, Values, with_input
from firstdiff.model.arithmetic import Array
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

PRODUCTS = ("Qcur", "Kcur", "Vcur", "attn_out", "ffn_gate", "ffn_up", "ffn_out")
NORMS = ("attn_norm", "ffn_norm", "result_norm")
QKV = {"Qcur": "attn_q.weight", "Kcur": "attn_k.weight", "Vcur": "attn_v.weight"}
GATE_UP = {"ffn_gate": "ffn_gate.weight", "ffn_up": "ffn_up.weight"}
LIKELY = {
    "attn_q": "attn_k", "attn_k": "attn_v", "attn_v": "attn_k", "ffn_gate": "ffn_up", "ffn_up": "ffn_gate",
    "attn_norm": "ffn_norm", "ffn_norm": "attn_norm", "output_norm": "blk.0.attn_norm", "attn_output": "attn_q",
}  # fmt: skip
"""Whose weight is taken for whose, the likeliest first."""

ORDER, TENSOR, BIAS = 2, 0, 7  # stages


# Arrangement


def _transposed(call: Call, _scene: Scene, _values: Values) -> Call | None:
    weight = call.inputs[1]
    if weight.shape[0] != weight.shape[-1]:
        return None
    return with_input(call, 1, replace(weight, dense=weight.values().T))


def _reinterpreted(call: Call, _scene: Scene, _values: Values) -> Call:
    # The buffer [out, in] is read as [in, out] and multiplied as x @ W.
    weight = call.inputs[1]
    return with_input(call, 1, replace(weight, dense=weight.values().reshape(weight.shape[::-1]).T))


def _picked(weight: Weight, sources: Sequence[Weight], rows: npt.NDArray[np.integer]) -> Weight:
    """`weight` with its rows taken from those of `sources`, one below the other."""
    if len({(s.kind, s.shape[-1]) for s in (weight, *sources)}) == 1:
        shape = (sum(s.shape[0] for s in sources), weight.shape[-1])
        return replace(weight, shape=shape, raw=np.concatenate([s.raw for s in sources])).pick(rows)
    dense = np.concatenate([s.values() for s in sources])[rows]
    return replace(weight, dense=dense)


def _permuted(call: Call, scene: Scene, values: Values) -> Call:
    heads = scene.model.hp.n_head if call.point == "Qcur" else scene.model.hp.n_head_kv
    weight = call.inputs[1]
    rows = np.arange(weight.shape[0]).reshape(heads, -1)  # [head, head_dim]
    if values["rows"] == "Hugging Face's":
        rows = np.concatenate([rows[:, 0::2], rows[:, 1::2]], 1)
    else:
        rows = np.stack(np.split(rows, 2, axis=1), -1)
    changed = with_input(call, 1, weight.pick(rows.reshape(-1)))
    bias = call.inputs[2]
    return changed if bias is None else with_input(changed, 2, bias.pick(rows.reshape(-1)))


def _permutations(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"rows": rows} for rows in ("Hugging Face's", "twice GGUF's"))


def _fused(call: Call, scene: Scene, values: Values) -> Call | None:
    hp, weight = scene.model.hp, call.inputs[1]
    assert call.layer is not None
    layer = scene.model.weights.layer(call.layer)
    if call.point in QKV:
        sources = [layer[name] for name in QKV.values()]
        rows = _qkv_rows(call.point, values["read"], hp.n_head, hp.n_head_kv, hp.head_dim)
    else:
        sources = [layer[name] for name in GATE_UP.values()]
        if values["read"] == "interleaved":
            rows = np.arange(weight.shape[0]) * 2 + (call.point == "ffn_up")
        elif values["read"] == "up first":
            rows = np.arange(weight.shape[0]) + weight.shape[0] * (call.point == "ffn_gate")
        else:
            rows = None
    if rows is None or (rows == _right_rows(call.point, sources)).all():
        return None
    return with_input(call, 1, _picked(weight, sources, rows))


def _right_rows(point: str, sources: Sequence[Weight]) -> npt.NDArray[np.integer]:
    index = list(QKV if point in QKV else GATE_UP).index(point)
    start = sum(s.shape[0] for s in sources[:index])
    return np.arange(start, start + sources[index].shape[0])


def _qkv_rows(point: str, read: str, heads: int, kv: int, dim: int) -> npt.NDArray[np.integer] | None:
    """Rows of [Q; K; V] that are taken for a point."""
    group, total = heads // kv, (heads + 2 * kv) * dim
    index = list(QKV).index(point)
    if read == "interleaved":  # [q of the group, k, v] for one KV head after another
        cut = np.arange(total).reshape(kv, group + 2, dim)
        part = (cut[:, :group], cut[:, group : group + 1], cut[:, group + 1 :])[index]
        return part.reshape(-1)
    if read == "K, Q, V":
        sizes = {"Kcur": kv * dim, "Qcur": heads * dim, "Vcur": kv * dim}
        starts = {"Kcur": 0, "Qcur": kv * dim, "Vcur": (heads + kv) * dim}
        return np.arange(starts[point], starts[point] + sizes[point])
    return None


def _reads(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"read": read} for read in ("interleaved", "up first", "K, Q, V"))


def _rolled(call: Call, _scene: Scene, values: Values) -> Call:
    weight = call.inputs[1]
    rows = (np.arange(weight.shape[0]) - values["by"]) % weight.shape[0]
    return with_input(call, 1, weight.pick(rows))


# Another tensor


def _named(weight: Weight) -> tuple[int | None, str]:
    """Layer and name within it: ``blk.3.attn_q.weight`` -> 3, ``attn_q.weight``."""
    parts = weight.name.split(".", 2)
    return (int(parts[1]), parts[2]) if parts[0] == "blk" else (None, weight.name)


def _of_other_layer(call: Call, scene: Scene, values: Values) -> Call | None:
    layer, name = _named(call.inputs[1]) if call.inputs[1] is not None else (None, "")
    if layer is None or not 0 <= layer + values["layers"] < scene.model.hp.n_layer:
        return None
    other = scene.model.weights.layer(layer + values["layers"]).get(name)
    if other is None or other.shape != call.inputs[1].shape:
        return None
    return with_input(call, 1, other)


def _other_layers(_call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, int]]:
    for distance in range(1, scene.model.hp.n_layer):
        yield from ({"layers": distance}, {"layers": -distance})


def _swapped(call: Call, scene: Scene, values: Values) -> Call | None:
    """By a name within the layer (``attn_k.weight``), or one of the whole file."""
    name, weights = values["tensor"], scene.model.weights
    if call.layer is not None and not name.startswith("blk."):
        weights = weights.layer(call.layer)
    other = weights.get(name)
    own = call.inputs[1]
    if other is None or own is None or other.shape != own.shape or other.name == own.name:
        return None
    return with_input(call, 1, other)


def _same_shape(call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    weight = call.inputs[1]
    if weight is None:
        return
    layer, own = _named(weight)
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
    likely = LIKELY.get(own.removesuffix(".weight"), "") + ".weight"
    yield from ({"tensor": name} for name in sorted(names, key=lambda name: name != likely))


def _untied(call: Call, scene: Scene, _values: Values) -> Call | None:
    weight, other = call.inputs[1], scene.model.weights["token_embd.weight"]
    return None if weight.name == other.name else with_input(call, 1, other)


# Biases


def _biased(factor: float) -> Change:
    def change(call: Call, _scene: Scene, _values: Values) -> Call | None:
        bias = call.inputs[2] if len(call.inputs) > 2 else None  # noqa: PLR2004 - x, weight, bias
        if bias is None:
            return None
        return with_input(call, 2, replace(bias, dense=bias.values() * np.float32(factor)) if factor else None)

    return change


TABLE = (
    Hypothesis(
        "weight-transposed",
        PRODUCTS,
        "a square weight in place of its transpose",
        "GGUF's ne = [in, out] is a row-major [out, in] matrix: compute x @ W.T",
        _transposed,
        stage=ORDER,
        source="chrishayuk/larql#18",
    ),
    Hypothesis(
        "weight-reinterpreted",
        (*PRODUCTS, "embd"),
        "a weight's row-major buffer read with its dimensions in the other order",
        "GGUF writes the row length first: ne = [in, out] is a row-major [out, in] matrix",
        _reinterpreted,
        stage=ORDER,
    ),
    Hypothesis(
        "head-transposed",
        ("result_output",),
        "the output matrix read as [hidden, vocab] in place of [vocab, hidden]",
        "row v of the output matrix belongs to token v: index v * n_embd + h",
        _reinterpreted,
        stage=ORDER,
        source="Integral2u/SharpMind#14",
    ),
    Hypothesis(
        "qk-permutation",
        ("Qcur", "Kcur"),
        "the rows of each head in another order",
        "permute the rows of Q and K once, as GGUF's conversion has done already",
        _permuted,
        _permutations,
        "the rows of each head in {rows} order",
        stage=ORDER,
        source="ggml-org/llama.cpp#22611",
    ),
    Hypothesis(
        "fused-split",
        (*QKV, *GATE_UP),
        "a fused product split in another order than it was joined in",
        "split [Q; K; V] and [gate; up] as blocks, in the order in which they were joined",
        _fused,
        _reads,
        "a fused product split in another order than it was joined in ({read})",
        stage=ORDER,
        source="vllm-project/vllm#36242",
    ),
    Hypothesis(
        "weight-row-offset",
        (*PRODUCTS, "result_output"),
        "each output has its neighbour's row of the weight",
        "row i of the weight makes output i",
        _rolled,
        lambda _call, _scene, _observed: ({"by": by} for by in (1, -1)),
        "the rows of the weight {by:+d} further on",
        stage=ORDER,
    ),
    Hypothesis(
        "weight-of-other-layer",
        (*PRODUCTS, "attn_norm", "ffn_norm"),
        "the weight of another layer",
        "load 'blk.N.*' for layer N, counted from 0",
        _of_other_layer,
        _other_layers,
        "the weight of the layer {layers:+d}",
        stage=TENSOR,
    ),
    Hypothesis(
        "weight-swapped",
        (*PRODUCTS, *NORMS),
        "the weight of another product",
        "load each weight by its own name",
        _swapped,
        _same_shape,
        "'{tensor}' in place of its own weight",
        stage=TENSOR,
        source="nntrainer/nntrainer#4194",
    ),
    Hypothesis(
        "head-untied",
        ("result_output",),
        "the token embedding taken for the output matrix, although the file has one",
        "use 'output.weight' where the file has it",
        _untied,
        stage=TENSOR,
        source="pegainfer-project/pegainfer#544",
    ),
    Hypothesis(
        "bias-missing",
        PRODUCTS,
        "the product without its bias",
        "add the bias that the file has",
        _biased(0),
        stage=BIAS,
        source="sbryngelson/ANEForge#253",
    ),
    Hypothesis(
        "bias-twice",
        PRODUCTS,
        "the bias added twice",
        "add the bias once",
        _biased(2),
        stage=BIAS,
    ),
)
