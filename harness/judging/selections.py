"""Selections: which numbers are the largest. Right is every choice that picks the same numbers."""

from __future__ import annotations

import numpy as np

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
