"""The KV cache gone wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, telling, with_op
from firstdiff.hypotheses.where import APPENDS
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import append
from firstdiff.model.holding import held
from firstdiff.model.probe import Call


def _stale(call: Call, _scene: Scene, values: Values) -> Call | None:
    past, new = call.argument("past"), call.argument("new")
    if past is None or (values["row"] != "zeros" and not telling(past[-1:])):
        return None
    row = np.zeros_like(new) if values["row"] == "zeros" else np.repeat(past[-1:], len(new), 0)
    return call.with_arguments(new=row)


def _stale_rows(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"row": row} for row in ("the one before", "zeros"))


def _slotted(past: Array, new: Array, *, slot: int, values: bool = False, arithmetic: Arithmetic) -> Array:
    """New rows written at another place of the cache, which was made of zeros."""
    whole = append(past, new, values=values, arithmetic=arithmetic)
    written = np.concatenate([whole[: len(past)], np.zeros_like(whole[len(past) :])])
    start = slot if slot >= 0 else len(past) + slot
    written[start : start + len(new)] = whole[len(past) :]
    return written


def _slot(call: Call, _scene: Scene, values: Values) -> Call | None:
    past = call.argument("past")
    if past is None or len(past) <= abs(values["slot"]):
        return None
    return with_op(call, _slotted, slot=values["slot"])


def _slots(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, int]]:
    """The last place, the first, and that which holds the new row."""
    yield from ({"slot": slot} for slot in (-1, 0))
    past, new = call.argument("past"), call.argument("new")
    if observed is None or scene.later is not None or past is None or len(past) < 3:  # noqa: PLR2004 - no other place
        return
    near = np.abs(observed[: len(past)] - new[0]).reshape(len(past), -1).sum(-1)
    if np.isfinite(near).any() and 0 < (slot := int(np.nanargmin(near))) < len(past) - 1:
        yield {"slot": slot}


def _strided(past: Array | None, new: Array, *, order: str, values: bool = False, arithmetic: Arithmetic) -> Array:
    tokens, heads, dim = new.shape
    if order == "[head, token, head_dim]":
        moved = new.reshape(heads, tokens, dim).transpose(1, 0, 2)
    else:
        moved = new.transpose(1, 0, 2).reshape(tokens, heads, dim)
    return append(past, np.ascontiguousarray(moved), values=values, arithmetic=arithmetic)


def _stride(call: Call, _scene: Scene, values: Values) -> Call | None:
    tokens, heads, _ = call.argument("new").shape
    return with_op(call, _strided, order=values["order"]) if tokens > 1 and heads > 1 else None


def _strides(_call: Call, _scene: Scene, _observed: Array | None) -> Iterator[dict[str, str]]:
    yield from ({"order": order} for order in ("[head, token, head_dim]", "[token, head, head_dim]"))


NARROW = {
    "f8_e4m3": "float8 (e4m3)",
    "f8_e5m2": "float8 (e5m2)",
    "i8-row": "int8 with one scale for each head of a token",
    "i8-tensor": "int8 with one scale for all new rows",
}
"""What a cache is rounded to, but for what llama.cpp's caches can be: that is an arithmetic, which is found before."""


def _narrowed(past: Array | None, new: Array, *, to: str, values: bool = False, arithmetic: Arithmetic) -> Array:
    """New rows rounded before they are written."""
    narrow = held(np.asarray(new, np.float32), to, float(np.abs(new).max(initial=0)))
    return append(past, arithmetic.widen(narrow), values=values, arithmetic=arithmetic)


def _clamped(past: Array | None, new: Array, *, bound: float, values: bool = False, arithmetic: Arithmetic) -> Array:
    """New rows limited to a bound before they are written."""
    return append(past, np.clip(new, -bound, bound), values=values, arithmetic=arithmetic)


def _bounds(call: Call, _scene: Scene, observed: Array | None) -> Iterator[dict[str, float]]:
    """The largest number that was written; to plant, one that bites."""
    new = np.abs(call.argument("new"))
    largest = float(new.max(initial=0.0))
    if observed is None:
        yield {"bound": largest / 2}
        return
    written = np.abs(observed[-len(new) :])
    if np.isfinite(written).all() and 0 < (bound := float(written.max(initial=0.0))) < largest:
        yield {"bound": bound}


TABLE = (
    Hypothesis(
        "cache-stale",
        APPENDS,
        "the new token's row not written to the cache",
        "write the row before attention reads it",
        _stale,
        _stale_rows,
        "the new token's row not written to the cache: it holds {row}",
        source="ggml-org/ggml#1497",
    ),
    Hypothesis(
        "cache-slot",
        APPENDS,
        "the new token's row written at another place of the cache",
        "write it where the cache ends",
        _slot,
        _slots,
        "the new token's row written at place {slot} of the cache",
        source="huggingface/transformers#47708",
    ),
    Hypothesis(
        "cache-stride",
        APPENDS,
        "heads and tokens exchanged when copied to the cache",
        "copy by strides: [token, head, head_dim] is not contiguous after a permutation",
        _stride,
        _strides,
        "the cache copied as {order}",
        source="ggml-org/ggml#1497",
    ),
    Hypothesis(
        "cache-rounded",
        APPENDS,
        "rows rounded to 8 bits on their way into the cache",
        "write the cache in the type that the other layers have",
        lambda call, _scene, values: with_op(call, _narrowed, to=values["to"]),
        lambda _call, _scene, _observed: iter([{"to": to} for to in NARROW]),
        lambda values: f"the new rows of the cache are rounded to {NARROW[values['to']]}",
        rounds=True,
    ),
    Hypothesis(
        "cache-clamped",
        APPENDS,
        "rows clamped on their way into the cache",
        "write rows as they are: a narrow type's range, or a bound meant for another tensor, cuts them off",
        lambda call, _scene, values: with_op(call, _clamped, bound=values["bound"]),
        _bounds,
        "the new rows of the cache are clamped at {bound:.6g}",
    ),
)
