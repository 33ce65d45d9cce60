"""The two ends of a model gone wrong: the embedding and the logits."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses.fitting import Numbers
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, identity, replaced, with_op
from firstdiff.hypotheses.where import EMBEDDING, LOGITS
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived, Operation, linear
from firstdiff.model.probe import Call


def _times(op: Operation, factor: float) -> Operation:
    """`op`, its result multiplied."""

    def multiplied(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
        y = op(*inputs, arithmetic=arithmetic, **attributes)
        return arithmetic.widen(y * y.dtype.type(factor))

    return Derived(op, multiplied, sizes=lambda size: size * abs(factor), rowwise=op is linear)


def _capped(op: Operation, cap: float) -> Operation:
    """`op`, its result soft-capped."""

    def capped(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
        return arithmetic.widen(np.asarray(cap * np.tanh(op(*inputs, arithmetic=arithmetic, **attributes) / cap)))

    return Derived(op, capped, rowwise=op is linear)


def _embedding_scale(call: Call, _scene: Scene, values: Values) -> Call:
    return with_op(call, _times(call.op, values["factor"]))


def _embedding_scales(_call: Call, scene: Scene) -> Iterator[float]:
    root = sqrt(scene.model.hp.n_embd)
    yield from (root, 1 / root, scene.model.hp.n_embd)


def _logit_scale(call: Call, _scene: Scene, values: Values) -> Call:
    return with_op(call, _times(call.op, values["factor"]))


def _logit_cap(call: Call, _scene: Scene, values: Values) -> Call | None:
    return with_op(call, _capped(call.op, values["cap"])) if values["cap"] > 0 else None


def _shifted(call: Call, _scene: Scene, values: Values) -> Call | None:
    tokens = list(call.argument("tokens"))
    return call.with_arguments(tokens=np.roll(tokens, values["by"]).tolist()) if len(set(tokens)) > 1 else None


def _other_ids(call: Call, scene: Scene, values: Values) -> Call | None:
    moved = [token + values["offset"] for token in call.argument("tokens")]
    n_vocab = scene.model.hp.n_vocab
    return call.with_arguments(tokens=moved) if all(0 <= token < n_vocab for token in moved) else None


def _shifts(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    """By one place, and by as many as bring the first row that was observed to its place."""
    yield from ({"by": by} for by in (1, -1))
    if observed is None or len(observed) == 1:
        return
    first = _first_recorded(observed)
    at = _nearest(call.compute(scene.arithmetic), observed[first])
    by = None if at is None else (first - at) % len(observed)
    if by not in (None, 0, 1, len(observed) - 1):
        yield {"by": by}


def _offsets(call: Call, _scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    """Usual ones, and the one that brings the first recorded token to the row that was observed."""
    usual = (1, -1, 2, -2, 3, -3, 256, -256)
    yield from ({"offset": offset} for offset in usual)
    weight, tokens = call.argument("weight"), call.argument("tokens")
    if observed is None or len(set(tokens)) == 1:
        return  # any other row is some offset of a single id
    first = _first_recorded(observed)
    best = [(start, _nearest(weight.rows(start, stop), observed[first])) for start, stop in weight.chunks()]
    rows = np.array([start + at for start, at in best if at is not None], np.int64)
    if len(rows):
        offset = int(rows[_nearest(weight.gather(rows), observed[first]) or 0]) - int(tokens[first])
        if offset not in (0, *usual):
            yield {"offset": offset}


def _first_recorded(observed: Array) -> int:
    """The first row that was recorded; the first of all where none is a number."""
    return int((~np.isnan(observed).all(-1)).argmax())


def _nearest(rows: Array, row: Array) -> int | None:
    """Which of some rows [n, features] is nearest to one; None where that holds no number."""
    with np.errstate(all="ignore"):
        apart = np.abs(rows - row).sum(-1)
    return int(np.nanargmin(apart)) if np.isfinite(apart).any() else None


FLOATS = {"f16": 2, "f32": 4, "bf16": 2}
"""Bytes of the numbers that a lookup may take a row for."""


def _misread(call: Call, scene: Scene, values: Values) -> Call | None:
    weight, gguf = call.argument("weight"), scene.model.gguf
    if weight.name not in gguf.tensors:
        return None
    info, width = gguf.tensors[weight.name], FLOATS[values["dtype"]] * weight.shape[-1]
    file = gguf.mapped[info.path]
    starts = info.offset + np.asarray(call.argument("tokens"), np.int64) * values["bytes"]
    if len(starts) == 0 or starts.min() < 0 or starts.max() + width > file.size:
        return None
    rows = np.stack([file[start : start + width] for start in starts.tolist()])
    return replaced(call, identity, _as_floats(rows, values["dtype"]))


def _as_floats(rows: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Rows of bytes, uint8 [T, n], as numbers [T, n / bytes]."""
    if dtype == "bf16":
        return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return rows.view("<f2" if dtype == "f16" else "<f4").astype(np.float32)


def _misreadings(call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, Any]]:
    """Other types and row lengths than the file's; of 16 bits taken for the other type there is a fault by itself."""
    weight = call.argument("weight")
    n, own, kind = weight.shape[-1], weight.row_bytes, weight.kind.name.lower()
    for dtype in sorted(FLOATS, key=lambda name: name != kind):
        for stride in dict.fromkeys((own, n * FLOATS[dtype], 2 * n, 4 * n, n)):
            if stride != own or (dtype != kind and not {dtype, kind} <= {"f16", "bf16"}):
                yield {"dtype": dtype, "bytes": stride, "right": own}


def _told_misreading(values: Values) -> str:
    rows = f"rows of {values['bytes']} bytes" if values["bytes"] != values["right"] else "rows of the right length"
    return f"the embedding's bytes read as {values['dtype']}, {rows}"


def _row(call: Call, _scene: Scene, values: Values) -> Call | None:
    x = call.argument("x")
    if len(x) == 1:
        return None
    index = np.arange(len(x))
    rows = {"the one before": np.maximum(index - 1, 0), "the first": 0 * index, "the last": 0 * index + len(x) - 1}
    return call.with_arguments(x=np.ascontiguousarray(x[rows[values["row"]]]))


def _rows(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"row": row} for row in ("the one before", "the first", "the last"))


TABLE = (
    Hypothesis(
        "embed-scale",
        EMBEDDING,
        "the embedding multiplied by a factor",
        "use the rows as they are: only Gemma's are multiplied by sqrt(n_embd)",
        _embedding_scale,
        Numbers(_embedding_scale, "factor", _embedding_scales, without=lambda _c, _s: (0.0, 1.0)),
        "the embedding multiplied by {factor:.6g}",
        stage=6,
        source="TensorAuto/OpenTau#179",
    ),
    Hypothesis(
        "token-shifted",
        EMBEDDING,
        "each token's row in a neighbour's place",
        "take row ids[t] for token t",
        _shifted,
        _shifts,
        "each token's row {by:+d} places further on",
        stage=4,
    ),
    Hypothesis(
        "token-offset",
        EMBEDDING,
        "the rows of ids that are off by a constant",
        "take row ids[t] for token t, counted from 0",
        _other_ids,
        _offsets,
        "the rows of ids that are off by {offset:+d}",
        stage=4,
    ),
    Hypothesis(
        "quantised-as-float",
        EMBEDDING,
        "the embedding's bytes read as floats of another type or row length",
        "take the type and the length of a row from the tensor's entry in the file, and dequantise it",
        _misread,
        _misreadings,
        _told_misreading,
        stage=3,
        source="vllm-project/vllm#30424",
    ),
    Hypothesis(
        "logits-of-wrong-row",
        LOGITS,
        "the logits of another token's row",
        "multiply each token's own result_norm by the output matrix",
        _row,
        _rows,
        "each row has the logits of {row}",
        stage=4,
    ),
    Hypothesis(
        "logit-scale",
        LOGITS,
        "logits multiplied by a factor that the file does not have",
        "leave the logits as they are",
        _logit_scale,
        Numbers(_logit_scale, "factor", lambda _c, _s: (0.5, 0.0625, 2.0), without=lambda _c, _s: (0.0, 1.0)),
        "logits multiplied by {factor:.6g}",
        stage=6,
    ),
    Hypothesis(
        "logit-softcap-added",
        LOGITS,
        "a soft cap on the logits that the file does not have",
        "cap logits only where the file has 'final_logit_softcapping'",
        _logit_cap,
        Numbers(_logit_cap, "cap", lambda _c, _s: (30.0, 15.0, 50.0)),
        "logits soft-capped at {cap:.6g}",
        stage=6,
        source="sgl-project/sglang#1046",
    ),
)
