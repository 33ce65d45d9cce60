"""Selections: which numbers are the largest. Right is every choice that picks the same numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from firstdiff.dumps import Site
from firstdiff.model.arithmetic import Array
from firstdiff.model.graph.moves import top_k
from firstdiff.model.graph.operation import NodeOperation
from firstdiff.model.probe import Call


def selects(call: Call) -> bool:
    """Whether a call's result is places of numbers in its input."""
    return call.op is top_k or (isinstance(call.op, NodeOperation) and call.op.selects)


def picked(call: Call, places: Array) -> Array:
    """The numbers that a selection picks, the largest first, [T, k].

    NaN stands for a place that there is none of, or that was picked before.
    """
    x = np.asarray(call.inputs[0])
    x = x.reshape(-1, x.shape[-1])
    at = np.asarray(places, np.float64).reshape(len(x), -1)
    sound = np.isfinite(at) & (at == np.rint(at)) & (at >= 0) & (at < x.shape[-1])
    number = np.where(sound, at, 0).astype(np.int64)
    order = np.argsort(number, -1, kind="stable")
    again = np.zeros(at.shape, bool)
    sorted_ = np.take_along_axis(number, order, -1)
    np.put_along_axis(again, order[:, 1:], sorted_[:, 1:] == sorted_[:, :-1], -1)
    values = np.where(sound & ~again, np.take_along_axis(x, number, -1), np.nan)
    return -np.sort(-values, -1)


def close_calls(call: Call, floor: float) -> int:
    """For how many tokens a choice could have gone another way: what is chosen last is hardly larger than the next.

    `floor` is how far the numbers that are chosen among may be off, relative to the largest of a token's.
    """
    if call.op is not top_k:
        return 0
    x, k = np.asarray(call.inputs[0], np.float64), int(call.argument("k"))
    x = x.reshape(-1, x.shape[-1])
    if k >= x.shape[-1]:
        return 0
    order = -np.sort(-x, -1)
    margin, size = order[:, k - 1] - order[:, k], np.abs(x).max(-1)
    return int((margin <= floor * size).sum())


def told(close: Mapping[Site, int]) -> tuple[str, ...]:
    """Say where experts were chosen by numbers that nobody recorded, and hardly."""
    if not close:
        return ()
    first, tokens = next(iter(close.items()))
    where = f"{first} and {len(close) - 1:,} more" if len(close) > 1 else str(first)
    count = "1 token" if tokens == 1 else f"{tokens:,} tokens"
    said = (
        f"which experts were chosen is not recorded at {where}, and was computed; for {count} at {first} two experts "
        "come so close that yours may have chosen the other: dump ffn_moe_topk or ffn_moe_logits too"
    )
    return (said,)
