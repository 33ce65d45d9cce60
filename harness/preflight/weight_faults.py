"""How a weight that is not the file's is wrong: by the table of hypotheses, or stored otherwise, scaled or shifted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import Kind, carrying, of_kind
from firstdiff.hypotheses import TABLE, Hypothesis, Scene
from firstdiff.hypotheses.hypothesis import Values
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.model.quants import SUPPORTED
from firstdiff.model.weights import Weight
from firstdiff.preflight.weight_readers import Reader

Array = npt.NDArray[Any]

ROWS = 16  # that a hypothesis is tried at first

CLOSE = 0.005
"""Relative error up to which values are the same: a rounding to bfloat16 alone makes 2e-3."""

CLEARLY = 4.0
"""What explains leaves less of the error than this part: a fault that changes little is not taken for another one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a weight, and the hypothesis that names it."""

    says: str
    hypothesis: str | None = None


def fault_of(model: Model, weight: Weight, calls: Sequence[Reader], theirs: Array) -> Fault:
    """Say how a candidate's tensor is wrong, which is not the file's within rounding.

    Parameters
    ----------
    model, weight
        The model, and its tensor.
    calls
        What reads the tensor: see :func:`firstdiff.preflight.weight_readers.readers`.
    theirs
        The candidate's values.
    """
    theirs = _squeezed(theirs)
    own = [int(n) for n in theirs.shape]
    said, size = list(weight.shape), math.prod(weight.shape)
    if theirs.size != size:
        return Fault(f"has {theirs.size:,} values (shape {own}), where the file has {size:,} (shape {said})")
    ours = weight.values()
    for says, hypothesis, stored in _stored(model, ours, calls):
        if stored.shape == theirs.shape and _error(theirs, stored) <= CLOSE:
            return Fault(says, hypothesis)
    if (named := explained(model, weight, calls, theirs)) is not None:
        return named
    if (other := _other(model, weight, theirs)) is not None:
        return Fault(f"holds the values of {other}")
    if theirs.shape != ours.shape:
        return Fault(f"has shape {own}, where the file has {said}, and other values in any order that was tried")
    return _values(ours, theirs)


def explained(model: Model, weight: Weight, calls: Sequence[Reader], theirs: Array) -> Fault | None:
    """Name the hypothesis whose wrong weight a candidate's is; None for none.

    It is the nearest one; of two as near, the one whose weight is another tensor of the file as it stands there.
    """
    if theirs.shape != weight.shape:
        return None
    bar = min(CLOSE, _error(theirs, weight.values()) / CLEARLY)
    near: list[tuple[float, bool, Fault, Weight]] = []
    for hypothesis, values, wrong in wrong_weights(model, calls):
        error = _error(theirs[:ROWS], _top(wrong))
        if error <= CLOSE:
            made = wrong.name == weight.name
            near.append((error, made, _named(model, weight, wrong, hypothesis, values), wrong))
    for _, _, fault, wrong in sorted(near, key=lambda found: found[:2]):
        if _error(theirs, wrong.values()) <= bar:
            return fault
    return None


def wrong_weights(model: Model, calls: Sequence[Reader]) -> Iterator[tuple[Hypothesis, Values, Weight]]:
    """Yield what each hypothesis makes of a weight at the calls that read it, in the order of the table."""
    scene = Scene(model, F32, lambda _: None)
    for hypothesis in TABLE.values():
        for reader in calls:
            call, index = reader.call, reader.index
            right = call.inputs[index]
            applies = hypothesis.first(call, scene) is not None
            for values in hypothesis.ways(call, scene, None) if applies else ():
                changed = hypothesis.apply(call, scene, values)
                wrong = None if changed is None or len(changed.inputs) <= index else changed.inputs[index]
                if isinstance(wrong, Weight) and wrong is not right and wrong.shape == right.shape:
                    yield hypothesis, values, wrong


def _stored(model: Model, ours: Array, calls: Sequence[Reader]) -> Iterator[tuple[str, str | None, Array]]:
    """The file's values as an engine may store them that uses them rightly, or in a shape that no product takes."""
    rotation = model.rotation
    if rotation is not None and rotation.pairing == "interleaved" and (heads := _rotated(calls)):
        rows = np.arange(len(ours)).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)  # [head, of the pair, pair]
        says = "has each head's rows in Hugging Face's order: right only with half-split pairs in rope"
        yield says, "qk-permutation", ours[rows]
    if ours.ndim == 1:
        return
    turned = ours.shape[::-1]
    if ours.shape == turned:
        yield "is transposed: right only where it is used as x @ W", "weight-transposed", ours.T
        return
    yield f"is transposed, {list(turned)}: right only where it is used as x @ W", "weight-transposed", ours.T
    says = (
        f"holds the file's bytes under the shape {list(turned)}: right only where that is GGUF's order"
        " of dimensions, the row length first"
    )
    yield says, "weight-reinterpreted", ours.reshape(turned)
    says = "holds the transpose's bytes under the file's shape"
    yield says, "weight-transposed", np.ascontiguousarray(ours.T).reshape(ours.shape)


def _rotated(calls: Sequence[Reader]) -> int | None:
    """How many heads a product has whose output is rotated; None for any other weight."""
    points = set(carrying("Q", "K")) & set(of_kind(Kind.PRODUCT))
    return next((reader.call.attributes.get("heads") for reader in calls if reader.call.point in points), None)


def _named(model: Model, weight: Weight, wrong: Weight, hypothesis: Hypothesis, values: Values) -> Fault:
    told = hypothesis.told(values, model)
    says = f"is wrong: {told}" if wrong.name == weight.name else f"holds the values of {wrong.name}: {told}"
    return Fault(says, hypothesis.id)


def _top(weight: Weight) -> Array:
    """The first rows of a weight, or all of a vector."""
    return weight.rows(0, min(ROWS, weight.shape[0])) if len(weight.shape) > 1 else weight.values()[:ROWS]


def _error(theirs: Array, ours: Array) -> float:
    """Relative error of what is finite in both; infinite where finite values meet others."""
    with np.errstate(invalid="ignore"):  # bytes read wrongly make signalling NaN
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
    most = min(CLOSE * norm, float(np.linalg.norm(t - w)) / CLEARLY)
    if scale and np.linalg.norm(t - scale * w) <= most:
        return Fault(f"is {scale:.6g} times the file's")
    shift = float((t - w).mean())
    if np.linalg.norm(t - w - shift) <= CLOSE * np.linalg.norm(t - w):
        return Fault(f"is the file's plus {shift:.6g}")
    off = np.abs(t - w)
    wrong = int((off > CLOSE * np.abs(w).max()).sum())
    index = [int(i) for i in np.unravel_index(int(off.argmax()), ours.shape)]
    error = np.linalg.norm(t - w) / math.sqrt(power) if power else math.inf
    return Fault(
        f"differs (relative error {error:.2g}; {wrong:,} of {w.size:,} values; greatest at {index}: "
        f"{theirs[tuple(index)]:.6g}, file {ours[tuple(index)]:.6g})"
    )


def _other(model: Model, weight: Weight, theirs: Array) -> str | None:
    """The other tensor of the file that these values are, whatever its place and shape."""
    flat = theirs.reshape(-1)
    for name, info in model.gguf.tensors.items():
        if name == weight.name or info.type.name not in SUPPORTED or math.prod(info.shape) != flat.size:
            continue
        first = _top(other := model.weights[name]).ravel()
        if _error(flat[: first.size], first) <= CLOSE and _error(flat, other.values().ravel()) <= CLOSE:
            return name
    return None


def _squeezed(x: Array) -> Array:
    """Without axes of length 1 in front."""
    while x.ndim > 1 and x.shape[0] == 1:
        x = x[0]
    return x
