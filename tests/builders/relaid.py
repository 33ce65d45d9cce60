"""Traces laid out in the ways that engines do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Trace

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
