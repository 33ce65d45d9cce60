"""Weights in another order: transposed, permuted, split or shifted by rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import Kind
from firstdiff.hypotheses.hypothesis import Apart, Hypothesis, Scene, Values
from firstdiff.hypotheses.products import rowwise, spread
from firstdiff.hypotheses.weights import named
from firstdiff.hypotheses.where import LOGITS, PRODUCTS, Where
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import embed, linear
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

JOINED = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))
"""Weights that engines join into one product, in the order in which they join them."""

ORDER = 2  # stage

TOKENS = 8  # by which it is told how far rows were shifted


def _transposed(call: Call, _scene: Scene, _values: Values) -> Call | None:
    weight = call.argument("weight")
    if weight.shape[0] != weight.shape[-1]:
        return None
    return call.with_arguments(weight=_read(weight, np.transpose))


def _reinterpreted(call: Call, _scene: Scene, _values: Values) -> Call:
    # The buffer [out, in] is read as [in, out] and multiplied as x @ W.
    weight = call.argument("weight")
    return call.with_arguments(weight=_read(weight, lambda x: x.reshape(weight.shape[::-1]).T))


def _read(weight: Weight, order: Callable[[Array], Array]) -> Weight:
    """A weight whose numbers are read in another order, and only then held as the engine holds its weights."""
    read = replace(weight, held=None)
    return replace(read, dense=order(read.values())).held_in(weight.held)


def _permuted(call: Call, _scene: Scene, values: Values) -> Call | None:
    weight, bias, heads = (call.argument(name) for name in ("weight", "bias", "heads"))
    if heads is None or weight.shape[0] % (2 * heads):
        return None
    right = np.arange(weight.shape[0]).reshape(heads, -1)  # [head, head_dim]
    if values["rows"] in HALVED:
        rows = np.concatenate([right[:, 0::2], right[:, 1::2]], 1).reshape(-1)
    else:
        rows = np.stack(np.split(right, 2, axis=1), -1).reshape(-1)
    changed = call.with_arguments(weight=weight.pick(rows))
    return changed if bias is None else changed.with_arguments(bias=bias.pick(rows))


HALVED = ("Hugging Face's", "the inverse of llama's")
"""Orders that have the even rows of a head first: conversion puts the rows of llama's halves in turn."""


def _permutations(_call: Call, scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    orders = ("Hugging Face's", "twice GGUF's") if _converted(scene.model) else ("llama's", "the inverse of llama's")
    yield from ({"rows": rows} for rows in orders)


def _converted(model: Model) -> bool:
    """Whether conversion to GGUF has permuted the rows of Q and K: it does for pairs of neighbours."""
    return model.rotation is not None and model.rotation.pairing == "interleaved"


def _unpermuted(model: Model | None) -> str:
    if model is None or _converted(model):
        return "permute the rows of Q and K once, as GGUF's conversion has done already"
    return f"leave the rows of Q and K as the file has them: conversion permutes none of {model.architecture}'s"


def _split(call: Call, scene: Scene, values: Values) -> Call | None:
    weight = call.argument("weight")
    layer, name = named(weight)
    names = next((of for of in JOINED if name.removesuffix(".weight") in of), None)
    if layer is None or names is None:
        return None
    sources = [scene.model.weights.layer(layer).get(f"{of}.weight") for of in names]
    if any(s is None for s in sources):
        return None
    joined = [s for s in sources if s is not None]
    own, sizes = names.index(name.removesuffix(".weight")), [s.shape[0] for s in joined]
    read = _thirds if len(names) == 3 else _halves  # noqa: PLR2004 - Q, K and V
    rows = read(call, values["read"], own, sizes)
    start = sum(sizes[:own])
    if rows is None or (rows == np.arange(start, start + sizes[own])).all():
        return None
    return call.with_arguments(weight=_picked(weight, joined, rows))


def _picked(weight: Weight, sources: Sequence[Weight], rows: npt.NDArray[np.integer]) -> Weight:
    """`weight` with its rows taken from those of `sources`, one below the other."""
    if len({(s.kind, s.shape[-1]) for s in (weight, *sources)}) == 1:
        shape = (sum(s.shape[0] for s in sources), weight.shape[-1])
        return replace(weight, shape=shape, raw=np.concatenate([s.raw for s in sources])).pick(rows)
    dense = np.concatenate([s.held_in(weight.held).values() for s in sources])[rows]
    return replace(weight, dense=dense)


def _halves(_call: Call, read: str, own: int, sizes: Sequence[int]) -> npt.NDArray[np.integer] | None:
    """Rows of [gate; up] that are taken for one of them."""
    index = np.arange(sizes[own])
    if read == "interleaved":
        return index * 2 + own
    return index + sizes[1] * (1 - own) if read == "up first" else None


def _thirds(call: Call, read: str, own: int, sizes: Sequence[int]) -> npt.NDArray[np.integer] | None:
    """Rows of [Q; K; V] that are taken for one of them."""
    q, k, v = sizes
    heads = call.argument("heads")
    if read == "interleaved" and heads is not None and k == v:  # [q of the group, k, v] for one KV head after another
        dim = sizes[own] // heads
        cut = np.arange(q + k + v).reshape(k // dim, -1, dim)
        return (cut[:, :-2], cut[:, -2:-1], cut[:, -1:])[own].reshape(-1)
    if read == "K, Q, V":
        return np.arange(sizes[own]) + (k, 0, k + q)[own]
    return None


def _reads(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"read": read} for read in ("interleaved", "up first", "K, Q, V"))


def _rolled(call: Call, _scene: Scene, values: Values) -> Call:
    weight = call.argument("weight")
    rows = (np.arange(weight.shape[0]) - values["by"]) % weight.shape[0]
    return call.with_arguments(weight=weight.pick(rows))


def _rolls(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    """By one row, and by as many as bring what was observed nearest to what is right."""
    yield from ({"by": by} for by in (1, -1))
    if observed is None or scene.later is not None:
        return
    bias, rows = call.argument("bias"), call.argument("weight").shape[0]
    known = np.asarray(observed, np.float64).reshape(-1, rows)
    held = np.flatnonzero(np.isfinite(known).any(1))  # rows that were not recorded are NaN
    if not len(held):
        return
    few = held[spread(len(held), TOKENS)]
    fewer = call.with_arguments(x=np.ascontiguousarray(call.argument("x")[few])) if rowwise(call.op) else call
    right = np.asarray(fewer.compute(scene.arithmetic), np.float64).reshape(-1, rows)
    right = right if fewer is not call else right[few]
    seen = np.nan_to_num(known[few], posinf=0.0, neginf=0.0)
    if bias is not None:
        seen, right = seen - bias.values(), right - bias.values()
    alike = np.fft.irfft((np.fft.rfft(seen) * np.fft.rfft(right).conj()).sum(0), rows)
    by = int(alike.argmax())
    if by not in (0, 1, rows - 1):
        yield {"by": by if by <= rows // 2 else by - rows}


TABLE = (
    Hypothesis(
        "weight-transposed",
        PRODUCTS,
        "a square weight in place of its transpose",
        "GGUF's ne = [in, out] is a row-major [out, in] matrix: compute x @ W.T",
        _transposed,
        stage=ORDER,
        apart=Apart.WEIGHT,
        source="chrishayuk/larql#18",
    ),
    Hypothesis(
        "weight-reinterpreted",
        Where((linear, embed), but=(Kind.LOGITS,)),
        "a weight's row-major buffer read with its dimensions in the other order",
        "GGUF writes the row length first: ne = [in, out] is a row-major [out, in] matrix",
        _reinterpreted,
        stage=ORDER,
        apart=Apart.WEIGHT,
    ),
    Hypothesis(
        "head-transposed",
        LOGITS,
        "the output matrix read as [hidden, vocab] in place of [vocab, hidden]",
        "row v of the output matrix belongs to token v: index v * n_embd + h",
        _reinterpreted,
        stage=ORDER,
        apart=Apart.WEIGHT,
        source="Integral2u/SharpMind#14",
    ),
    Hypothesis(
        "qk-permutation",
        Where((linear,), carries="QK"),
        "the rows of each head in another order",
        _unpermuted,
        _permuted,
        _permutations,
        "the rows of each head in {rows} order",
        stage=ORDER,
        apart=Apart.WEIGHT,
        source="ggml-org/llama.cpp#22611",
    ),
    Hypothesis(
        "fused-split",
        PRODUCTS,
        "a fused product split in another order than it was joined in",
        "split [Q; K; V] and [gate; up] as blocks, in the order in which they were joined",
        _split,
        _reads,
        "a fused product split in another order than it was joined in ({read})",
        stage=ORDER,
        apart=Apart.WEIGHT,
        source="vllm-project/vllm#36242",
    ),
    Hypothesis(
        "weight-row-offset",
        Where((linear,)),
        "each output has its neighbour's row of the weight",
        "row i of the weight makes output i",
        _rolled,
        _rolls,
        "the rows of the weight {by:+d} further on",
        stage=ORDER,
        apart=Apart.WEIGHT,
    ),
)
