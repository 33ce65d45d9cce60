"""The mask of attention gone wrong: missing, off by some tokens, or a window that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, with_op
from firstdiff.hypotheses.where import SOFTMAX
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import soft_max, visible
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

BLIND = ("uniform over all keys", "zeros", "uniform over the right keys")
"""What engines have in a row of the softmax that sees no key, where it is not NaN."""

SOUGHT = 64
"""Keys up to which every window is tried; of more, the powers of two."""


def _windowed(kq: Array, *sinks: Weight | None, window: int, arithmetic: Arithmetic, **attributes: Any) -> Array:  # noqa: ANN401
    """A causal softmax over the last `window` keys of each query, whatever window the model has."""
    near = ~visible(kq.shape[-2], kq.shape[-1], -window)
    mask = attributes.get("mask")
    attributes |= {"mask": None} if mask is not None and mask.ndim == 2 else {}  # noqa: PLR2004 - [T, S]
    hidden = np.where(near, kq, kq.dtype.type(-np.inf))
    return soft_max(hidden, *sinks, arithmetic=arithmetic, **attributes)


def _is_windowed(call: Call) -> bool:
    """Whether a softmax hides earlier keys."""
    mask = call.argument("mask")
    return mask is not None and bool((np.isinf(mask) & visible(*mask.shape[-2:])).any())


def _no_window(call: Call, _scene: Scene, _values: Values) -> Call | None:
    return call.with_arguments(mask=None) if _is_windowed(call) and np.ndim(call.argument("mask")) == 2 else None  # noqa: PLR2004


def _window(call: Call, _scene: Scene, values: Values) -> Call | None:
    return (
        with_op(call, _windowed, window=values["window"]) if values["window"] < call.argument("kq").shape[-1] else None
    )


def _windows(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    keys = call.argument("kq").shape[-1]
    if scene.later is not None:  # where it is not seen, it is sought
        yield from ({"window": n} for n in range(1, keys) if keys <= SOUGHT or n & (n - 1) == 0)
        return
    if observed is None:
        yield {"window": max(1, keys // 2)}
        return
    # [T, S]; in f16 a small one may be 0 for one query, and not for all. What was not recorded is NaN.
    shown = (np.abs(observed) > 0).any(0)
    own = np.arange(keys - shown.shape[0], keys)
    seen = int((own + 1 - shown.argmax(-1))[shown.any(-1)].max(initial=0))
    if 0 < seen < keys:
        yield {"window": seen}


def _no_mask(call: Call, _scene: Scene, _values: Values) -> Call | None:
    kq = call.argument("kq")
    return call.with_arguments(offset=kq.shape[-1]) if kq.shape[-2] > 1 else None


def _mask_offset(call: Call, _scene: Scene, values: Values) -> Call | None:
    kq = call.argument("kq")
    offset = values["offset"]
    if offset > 0 and kq.shape[-2] <= offset:
        return None  # a mask missing altogether, or nothing hidden from a single query
    if "blind" in values:
        return with_op(call, _blind, offset=offset, blind=values["blind"])
    return call.with_arguments(offset=offset)


def _blind(
    kq: Array,
    *sinks: Weight | None,
    offset: int,
    blind: str,
    arithmetic: Arithmetic,
    **attributes: Any,  # noqa: ANN401
) -> Array:
    """A causal softmax that has something else than NaN in the rows that see no key."""
    p = soft_max(kq, *sinks, offset=offset, arithmetic=arithmetic, **attributes)
    queries, keys = kq.shape[-2:]
    right = visible(queries, keys)
    rows = {
        "uniform over all keys": np.full(right.shape, 1 / keys),
        "zeros": np.zeros(right.shape),
        "uniform over the right keys": right / right.sum(-1, keepdims=True),
    }[blind]
    hidden = ~visible(queries, keys, offset).any(-1)
    p[:, hidden] = rows[hidden]
    return p


def _mask_offsets(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, Any]]:
    queries, keys = call.argument("kq").shape[-2:]
    offsets = [1, -1, 2]
    if observed is not None and scene.later is None and (seen := _offset_seen(observed)):
        offsets = [*dict.fromkeys((seen, *offsets))]
    for offset in offsets:
        if offset < queries - 1 or offset == 1:
            yield {"offset": offset}
        if keys - queries + offset < 0:  # masks of a large negative number make such rows uniform, others zeros
            yield from ({"offset": offset, "blind": blind} for blind in BLIND)


def _offset_seen(observed: Array) -> int:
    """How many keys after its own a query sees, at most of all that do not see the last one; 0 where none does."""
    shown = np.asarray((observed > 0).any(0))  # [T, S]
    queries, keys = shown.shape
    last = keys - 1 - shown[:, ::-1].argmax(-1)
    clear = shown.any(-1) & (last < keys - 1)
    return int((last - np.arange(keys - queries, keys))[clear].max()) if clear.any() else 0


TABLE = (
    Hypothesis(
        "mask-missing",
        SOFTMAX,
        "no causal mask",
        "hide from each token all later ones",
        _no_mask,
        source="lablup/mlxcel#998",
    ),
    Hypothesis(
        "mask-offset",
        SOFTMAX,
        "a causal mask that is off by some tokens",
        "let each token see itself and all earlier ones",
        _mask_offset,
        _mask_offsets,
        "a causal mask that is off by {offset:+d}",
    ),
    Hypothesis(
        "window-added",
        SOFTMAX,
        "a sliding window that the file does not ask for",
        "let each token see all earlier ones",
        _window,
        _windows,
        "a sliding window of {window} tokens that the file does not ask for",
    ),
    Hypothesis(
        "window-missing",
        SOFTMAX,
        "no sliding window at a layer that has one",
        "let each token see only the latest tokens, as many as the file's 'attention.sliding_window' says",
        _no_window,
    ),
)
