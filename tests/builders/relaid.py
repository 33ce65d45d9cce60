"""Traces laid out in the ways that engines do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.tensors import Held, dtype_of
from firstdiff.model.narrowing import narrowed

Array = npt.NDArray[np.floating]
Change = Callable[[Site, Array], Array | None]

HEADS = ("Qcur", "Kcur", "Vcur", "Qcur_rope", "Kcur_rope", "k_cache", "v_cache")
ROTATED = ("Qcur", "Kcur", "Qcur_rope", "Kcur_rope", "k_cache")
SCORES = ("kq", "kq_soft_max")


def relaid(trace: Trace, change: Change, **said: object) -> Trace:
    """The trace with each tensor changed, or left out for None."""
    tensors = {}
    for site in trace.sites():
        x = change(site, np.array(trace[site]))
        if x is not None:
            tensors[site] = x
    return Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={}, **said)  # type: ignore[arg-type]


def half_split(x: Array) -> Array:
    """Interleaved head dimensions in half-split order: (0, 2, 4, …, 1, 3, 5, …)."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)


def interleaved(x: Array) -> Array:
    """Half-split head dimensions in the order of pairs of neighbours: what `half_split` undoes."""
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)


def ggml_order(site: Site, x: Array) -> Array:
    if site.point in HEADS:
        return x.transpose(2, 1, 0)
    return x.transpose(2, 1, 0) if site.point in SCORES else x.T


def hugging_face(site: Site, x: Array) -> Array:
    if site.point in ROTATED:
        x = half_split(x)
    return x.transpose(1, 0, 2)[None] if site.point in HEADS else x[None]


LAYOUTS: dict[str, Change] = {
    "ggml's axis order": ggml_order,
    "features first": lambda s, x: x if s.point in SCORES else x.reshape(len(x), -1).T,
    "heads first": lambda s, x: x.transpose(1, 0, 2) if s.point in HEADS else x,
    "queries first": lambda s, x: x.transpose(1, 0, 2) if s.point in SCORES else x,
    "half-split heads": lambda s, x: half_split(x) if s.point in ROTATED else x,
    "as transformers has it": hugging_face,
    "scaled scores": lambda s, x: x / np.float32(np.sqrt(32)) if s.point == "kq" else x,
    "masked scores": lambda s, x: (
        np.where(np.tril(np.ones(x.shape[-2:], bool), x.shape[-1] - x.shape[-2]), x, -np.inf) if s.point == "kq" else x
    ),
    "padded keys": lambda s, x: np.pad(x, ((0, 0), (0, 0), (0, 20))) if s.point in SCORES else x,
    "repeated KV heads": lambda s, x: np.repeat(x, 2, 1) if s.point in ("k_cache", "v_cache", "Kcur_rope") else x,
    "last logits only": lambda s, x: x[-1] if s.point == "result_output" else x,
}


# Whole dumps


def on_disk(trace: Trace, dtype: str, **engine: object) -> Trace:
    """The trace as a dump in a dtype, of an engine that says what is given."""
    with np.errstate(over="ignore"):
        held = {site: Held(stored_as(np.array(trace[site]), dtype), dtype) for site in trace.sites()}
    return replace(trace, tensors=held, engine={"name": "someone's engine", **engine}, model={}, path=None)


def stored_as(x: Array, dtype: str) -> npt.NDArray[Any]:
    """The raw values of a dump: bf16 as the upper bits of float32."""
    if dtype == "bf16":
        return (narrowed(np.asarray(x, np.float32), "bf16").view(np.uint32) >> 16).astype(np.uint16)
    return x.astype({"f32": np.float32, "f16": np.float16}[dtype])


def fused(trace: Trace, how: str, *, n_head_kv: int) -> Trace:
    """Q, K and V as one product, in blocks or (``by KV head``) in turn, and the gate and up as another."""
    tensors: dict[Site, Array] = {}
    for site in trace.sites():
        parts = {"Qcur": ("wqkv", "Qcur", "Kcur", "Vcur"), "ffn_gate": ("ffn_gate_up", "ffn_gate", "ffn_up")}
        if site.point in parts:
            name, *points = parts[site.point]
            values = [np.array(trace[replace(site, point=point)]) for point in points]
            interleaved_ = how == "by KV head" and name == "wqkv"
            values = [x.reshape(len(x), n_head_kv if interleaved_ else 1, -1) for x in values]
            tensors[replace(site, point=name)] = np.concatenate(values, -1).reshape(len(values[0]), -1)
        elif site.point not in ("Kcur", "Vcur", "ffn_up"):
            tensors[site] = np.array(trace[site])
    return _with(trace, tensors)


def scored(how: str, scale: float, dtype: str) -> Change:
    """Scores as engines dump them: multiplied by the softmax's scale, and what is hidden masked."""
    least = {"f32": np.finfo(np.float32).min, "f16": -65504.0, "bf16": -3.3895314e38}[dtype]
    masks = {"-inf": -np.inf, "-1e9": -1e9, "least": least}

    def change(site: Site, x: Array) -> Array:
        if site.point != "kq":
            return x
        parts = how.split(", ")
        x = x * np.float32(scale) if "scaled" in parts else x
        hidden = ~np.tril(np.ones(x.shape[-2:], bool), x.shape[-1] - x.shape[-2])
        return np.where(hidden, np.float32(masks[parts[-1]]), x) if parts[-1] in masks else x

    return change


AXES: dict[str, Change] = {
    "plain": lambda _, x: x,
    "batch of 1": lambda _, x: x[None],
    "heads first": LAYOUTS["heads first"],
    "reversed": ggml_order,
}


def rows_of(site: Site, change: Callable[[Array], Array], x: Array) -> Array:
    """The rows of the step's tokens changed; caches stay as they are."""
    if site.point in ("k_cache", "v_cache"):
        return x
    return change(x.swapaxes(0, 1)).swapaxes(0, 1) if site.point in SCORES else change(x)


def last_row(site: Site, x: Array) -> Array:
    return rows_of(site, lambda rows: rows[-1:], x)


def padded_rows(rows: int, rng: np.random.Generator | None) -> Change:
    """Buffers of more rows than the step has tokens: behind them zeros, or what was there before."""

    def change(site: Site, x: Array) -> Array:
        if site.point in (*SCORES, "k_cache", "v_cache") or len(x) >= rows:
            return x
        shape = (rows - len(x), *x.shape[1:])
        rest = np.zeros(shape) if rng is None else rng.standard_normal(shape) * float(x.std())
        return np.concatenate([x, rest.astype(x.dtype)])

    return change


def without_first_step(trace: Trace) -> Trace:
    """The trace as if recording had begun in the middle."""
    tensors = {replace(s, step=s.step - 1): np.array(trace[s]) for s in trace.sites() if s.step}
    return replace(_with(trace, tensors), steps=trace.steps[1:])


def _with(trace: Trace, tensors: dict[Site, Array]) -> Trace:
    held = {site: Held(x, dtype_of(x)) for site, x in tensors.items()}
    return replace(trace, tensors=held, path=None)
