"""Which keys each query saw, by the probabilities that are 0 and those that are not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.statement import Found, statement, where
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.hypothesis import Scene, Values
from firstdiff.model.attention import looked_at, soft_max, visible
from firstdiff.model.probe import Call

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

HIDDEN = 1e-6
"""Probabilities from which a 0 in their place says that a key is hidden."""


def other_masks(view: View) -> Iterator[Found]:
    """Keys that are hidden or seen otherwise, alike in all heads."""
    if view.call.op is not soft_max:
        return
    t, s = view.case.computed.shape[-2:]
    given = view.result + view.error
    right = np.broadcast_to(looked_at(view.case.computed.shape, view.call.argument("mask")), view.case.computed.shape)
    right = right[:, view.rows]
    hidden = (right & (given == 0) & (view.result > HIDDEN)).any(0)
    shown = (~right & (given > 0)).any(0)
    if (right != right[0]).any() or not (hidden.any() or shown.any()):
        return
    seen = (right[0] & ~hidden) | shown
    if (seen[None] & (given == 0) & (view.result > HIDDEN)).any():
        return  # not alike in all heads
    unknown = right[0] & ~hidden & (given == 0).all(0)  # too small to be told from hidden ones
    own, key = np.arange(s - t, s)[view.rows][:, None], np.arange(s)[None]
    total = float(np.square(view.error * view.scale).sum())
    for values in _shapes(seen, unknown, own, key):
        yield Found("measured-mask", values, total / 1e6)


def _shapes(seen: Mask, unknown: Mask, own: Indices, key: Indices) -> Iterator[dict[str, object]]:
    """The masks of usual shapes that agree with what was seen, the first size of each shape."""
    for shape in _SHAPES:
        for values, mask in shape(seen, unknown, own, key):
            if bool((mask == seen)[~unknown].all()):
                yield values
                break


Shape = Iterator[tuple[dict[str, object], Mask]]


def _windows(_seen: Mask, _unknown: Mask, own: Indices, key: Indices) -> Shape:
    for size in range(1, key.shape[-1] + 1):
        yield {"mask": "window", "size": size}, (key <= own) & (key > own - size)


def _chunks(_seen: Mask, _unknown: Mask, own: Indices, key: Indices) -> Shape:
    for size in range(2, key.shape[-1] + 1):
        yield {"mask": "chunk", "size": size}, (key <= own) & (key // size == own // size)


def _offsets(_seen: Mask, _unknown: Mask, own: Indices, key: Indices) -> Shape:
    for by in (-1, 1, -2, 2, *range(3, key.shape[-1])):
        yield {"mask": "offset", "size": by}, (key <= own + by) | ((own + by < 0) & (key == 0))


def _columns(seen: Mask, unknown: Mask, own: Indices, key: Indices) -> Shape:
    """Keys that no query sees, or none but that of the same position."""
    before = key < own
    columns = np.flatnonzero((~(seen | unknown) & before).any(0) & ~(seen & before).any(0))
    if len(columns):
        without = (key <= own) & ~np.isin(key, columns)
        for same in (False, True):
            mask = without | (key == own) if same else without
            yield {"mask": "keys", "key": str(Pattern.of(columns)), "own": same}, mask


def _documents(_seen: Mask, _unknown: Mask, own: Indices, key: Indices) -> Shape:
    for start in range(1, key.shape[-1]):
        yield {"mask": "documents", "size": start}, (key <= own) & ((key < start) == (own < start))


_SHAPES = (_windows, _chunks, _offsets, _columns, _documents)


def masked(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The softmax with another mask."""
    t, s = call.argument("kq").shape[-2:]
    own, key, size = np.arange(s - t, s)[:, None], np.arange(s)[None], values.get("size", 0)
    seen = visible(t, s)
    if values["mask"] == "window":
        seen = seen & (key > own - size)
    elif values["mask"] == "chunk":
        seen = seen & (key // size == own // size)
    elif values["mask"] == "offset":
        seen = (key <= own + size) | ((own + size < 0) & (key == 0))
    elif values["mask"] == "documents":
        seen = seen & ((key < size) == (own < size))
    else:
        pattern = Pattern.read(values["key"])
        seen = seen & ~np.isin(key, pattern.among(s))
        seen = seen | (key == own) if values["own"] else seen
    return call.with_arguments(mask=np.where(seen, np.float32(0), np.float32(-np.inf)))


def _mask(values: Values) -> str:
    size = values.get("size")
    shapes = {
        "window": f"each query sees the last {size} keys up to its own, and none before",
        "chunk": f"each query sees only keys in its own block of {size}",
        "offset": f"each query sees the keys up to its own position {size:+d}" if size else "",
        "documents": f"the queries from {size} on do not see the keys before {size}",
    }
    if values["mask"] in shapes:
        return shapes[values["mask"]]
    but = ", but by the query of the same position" if values["own"] else ""
    return f"{where(values)} are seen by no query{but}"


STATEMENTS = (
    statement(
        "measured-mask",
        "other keys are seen",
        masked,
        _mask,
        "compare the mask with the one that the model file asks for",
        ops=(soft_max,),
    ),
)
