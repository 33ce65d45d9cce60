"""How a weight that is not the file's is wrong: arranged otherwise, scaled, shifted, or another tensor's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses.blocks import table as blocks
from firstdiff.model.blocks import LAYOUTS
from firstdiff.model.engine import Model
from firstdiff.model.quants import SUPPORTED
from firstdiff.model.weights import Weight

Array = npt.NDArray[Any]

ROWS = 16  # that a reading of the blocks is tried at first

CLOSE = 0.005
"""Relative error up to which values are the same: a rounding to bfloat16 alone makes 2e-3."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a weight, and the hypothesis that names it."""

    says: str
    hypothesis: str | None = None


def fault_of(model: Model, weight: Weight, theirs: Array) -> Fault:
    """Say how a candidate's tensor is wrong, which is not the file's within rounding."""
    theirs = _squeezed(theirs)
    own = [int(n) for n in theirs.shape]
    said, size = list(weight.shape), math.prod(weight.shape)
    if theirs.size != size:
        return Fault(f"has {theirs.size:,} values (shape {own}), where the file has {size:,} (shape {said})")
    ours = weight.values()
    for says, hypothesis, arranged in _arrangements(model, weight, ours):
        if arranged.shape == theirs.shape and _same(theirs, arranged):
            return Fault(says, hypothesis)
    if (decoded := read_wrongly(model, weight, theirs)) is not None:
        return decoded
    if (other := _other(model, weight, theirs)) is not None:
        return Fault(f"holds the values of {other}", _swapped(weight.name, other))
    if theirs.shape != ours.shape:
        return Fault(f"has shape {own}, where the file has {said}, and other values in any order that was tried")
    return _values(ours, theirs)


def _arrangements(model: Model, weight: Weight, ours: Array) -> Iterator[tuple[str, str | None, Array]]:
    """The file's values in other orders."""
    if ours.ndim == 1:
        return
    turned = ours.shape[::-1]
    if ours.shape[0] == ours.shape[1]:
        yield "is transposed: right only where it is used as x @ W", "weight-transposed", ours.T
    else:
        yield f"is transposed, {list(turned)}: right only where it is used as x @ W", "weight-transposed", ours.T
        says = (
            f"holds the file's bytes under the shape {list(turned)}: right only where that is GGUF's order"
            " of dimensions, the row length first"
        )
        yield says, "weight-reinterpreted", ours.reshape(turned)
    says = "holds the file's bytes read with the dimensions in the other order"
    yield says, "weight-reinterpreted", ours.reshape(turned).T
    yield (
        "holds the transpose's bytes under the file's shape",
        "weight-transposed",
        np.ascontiguousarray(ours.T).reshape(ours.shape),
    )
    heads = {"attn_q.weight": model.hp.n_head, "attn_k.weight": model.hp.n_head_kv}
    for name, count in heads.items():
        if weight.name.endswith(name):
            rows = ours.reshape(count, -1, 2, ours.shape[1])  # [head, pair, of the pair, n_embd]
            says = "has each head's rows in Hugging Face's order: right only with half-split pairs in rope"
            yield says, "qk-permutation", rows.swapaxes(1, 2).reshape(ours.shape)
            rows = ours.reshape(count, 2, -1, ours.shape[1])
            says = "has each head's rows permuted once more than the file"
            yield says, "qk-permutation", rows.swapaxes(1, 2).reshape(ours.shape)


def read_wrongly(model: Model, weight: Weight, theirs: Array) -> Fault | None:
    """Which wrong reading of the raw blocks gives a candidate's values: the nearest one; None for none."""
    if weight.kind.name not in LAYOUTS or theirs.shape != weight.shape:
        return None
    few = replace(weight, raw=weight.raw_rows(0, ROWS), shape=(min(ROWS, weight.shape[0]), weight.shape[1]))
    near: list[tuple[float, Fault, Weight]] = []
    for hypothesis, values, whole in blocks.readings(model, weight):
        part = replace(few, raw=whole.raw_rows(0, ROWS), decode=whole.decode)
        error = _error(theirs[:ROWS], part.values())
        if error <= CLOSE:
            near.append((error, Fault(f"is read wrongly: {hypothesis.told(values)}", hypothesis.id), whole))
    for _, fault, whole in sorted(near, key=lambda found: found[0]):
        if _error(theirs, whole.values()) <= CLOSE:
            return fault
    return None


def _error(theirs: Array, ours: Array) -> float:
    """Relative error of what is finite in both; infinite where finite values meet others."""
    t, w = theirs.astype(np.float64), ours.astype(np.float64)
    finite = np.isfinite(w)
    if not np.array_equal(finite, np.isfinite(t)):
        return math.inf
    size = float(np.linalg.norm(w[finite]))
    return float(np.linalg.norm(t[finite] - w[finite])) / size if size else math.inf


def _values(ours: Array, theirs: Array) -> Fault:
    """Other values in the same places."""
    w, t = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    power, norm = float(w @ w), float(np.linalg.norm(t))
    if norm == 0:
        return Fault("is all zeros")
    scale = float(w @ t) / power if power else 0.0
    if scale and np.linalg.norm(t - scale * w) <= CLOSE * norm:
        return Fault(f"is {scale:.6g} times the file's", None)
    shift = float((t - w).mean())
    if np.linalg.norm(t - w - shift) <= CLOSE * np.linalg.norm(t - w):
        again = ": Gemma's + 1 is in the file already" if abs(abs(shift) - 1) < CLOSE else ""
        return Fault(f"is the file's plus {shift:.6g}{again}", "norm-plus-one" if again else None)
    if np.linalg.norm(t - w * w) <= CLOSE * norm:
        return Fault("is the square of the file's", "norm-weight-twice")
    off = np.abs(t - w)
    wrong = int((off > CLOSE * np.abs(w).max()).sum())
    index = [int(i) for i in np.unravel_index(int(off.argmax()), ours.shape)]
    error = np.linalg.norm(t - w) / math.sqrt(power) if power else math.inf
    return Fault(
        f"differs (relative error {error:.2g}; {wrong:,} of {w.size:,} values; greatest at {index}: "
        f"{theirs[tuple(index)]:.6g}, file {ours[tuple(index)]:.6g})"
    )


def _other(model: Model, weight: Weight, theirs: Array) -> str | None:
    """The other tensor of the file that these values are."""
    flat = theirs.reshape(-1)
    for name, info in model.gguf.tensors.items():
        if name == weight.name or info.type.name not in SUPPORTED or math.prod(info.shape) != flat.size:
            continue
        candidate = model.weights[name]
        first = candidate.rows(0, 1).ravel() if len(info.shape) > 1 else candidate.values()
        if _same(flat[: first.size], first) and _same(flat, candidate.values().ravel()):
            return name
    return None


def _swapped(name: str, other: str) -> str:
    """Another tensor of the same layer, or the same tensor of another one."""
    return "weight-swapped" if name.split(".")[:2] == other.split(".")[:2] else "weight-of-other-layer"


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays are equal within a rounding; by a few values first, as most are not."""
    if a.shape != b.shape:
        return False
    return _near(a[:8], b[:8]) and _near(a, b)


def _near(a: Array, b: Array) -> bool:
    wide = b.astype(np.float64)
    return bool(np.linalg.norm(a - wide) <= CLOSE * np.linalg.norm(wide))


def _squeezed(x: Array) -> Array:
    """Without axes of length 1 in front."""
    while x.ndim > 1 and x.shape[0] == 1:
        x = x[0]
    return x
