"""Sums gone wrong: of a branch and the residual stream, add(branch, stream)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstdiff.hypotheses.fitting import Numbers
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, identity, replaced, with_op
from firstdiff.hypotheses.where import SUMS
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import add
from firstdiff.model.probe import Call
from firstdiff.model.rounding import round_to

SEEN_BOUND = 10.0  # of the residual in the case this project was made for


def _weighted(a: Array, b: Array, *, branch: float = 1.0, stream: float = 1.0, arithmetic: Arithmetic) -> Array:
    one = arithmetic.dtype
    return arithmetic.widen(a) * one(branch) + arithmetic.widen(b) * one(stream)


def _branch(call: Call, _scene: Scene, values: Values) -> Call:
    return with_op(call, _weighted, branch=values["factor"])


def _stream(call: Call, _scene: Scene, values: Values) -> Call:
    return with_op(call, _weighted, stream=values["factor"])


def _clipped(call: Call, _scene: Scene, values: Values) -> Call:
    return with_op(call, _clipped_add, bound=values["bound"])


def _clipped_add(a: Array, b: Array, *, bound: float, arithmetic: Arithmetic) -> Array:
    return np.clip(add(a, b, arithmetic=arithmetic), -bound, bound)


def _bounds(call: Call, scene: Scene, observed: Array | None) -> Iterator[dict[str, float]]:
    """The bound is the largest number that is left, in the fewest digits that are stored as that number.

    Without any, what was seen, or one that bites.
    """
    largest = float(np.abs(call.compute(scene.arithmetic)).max())
    if observed is None:
        yield {"bound": min(SEEN_BOUND, largest / 2)}
        return
    recorded = observed[~np.isnan(observed).all(-1)]  # rows
    if np.isfinite(recorded).all() and 0 < (bound := float(np.abs(recorded).max(initial=0.0))) < largest:
        kind = next((k for k in ("bf16", "f16", "f32") if np.array_equal(round_to(recorded, k), recorded)), None)
        rounder = (float(f"{bound:.{digits}g}") for digits in range(1, 10))
        yield {"bound": next((r for r in rounder if round_to(np.array([r]), kind)[0] == bound), bound)}


TABLE = (
    Hypothesis(
        "residual-missing",
        SUMS,
        "the residual stream not added",
        "add the branch's input to its output",
        lambda call, _scene, _values: replaced(call, identity, call.argument("a")),
    ),
    Hypothesis(
        "branch-missing",
        SUMS,
        "the branch's output not added to the residual stream",
        "add the branch's output",
        lambda call, _scene, _values: replaced(call, identity, call.argument("b")),
    ),
    Hypothesis(
        "residual-twice",
        SUMS,
        "the residual stream added twice",
        "add it once: a fused product or a second buffer may hold it already",
        lambda call, _scene, _values: with_op(call, _weighted, stream=2.0),
    ),
    Hypothesis(
        "residual-clipped",
        SUMS,
        "a residual stream clipped at a bound",
        "do not clamp the residual stream",
        _clipped,
        _bounds,
        "a residual stream clipped at {bound:.6g}",
    ),
    Hypothesis(
        "branch-scale",
        SUMS,
        "the branch multiplied by a factor that the file does not have",
        "add the branch as it is",
        _branch,
        Numbers(_branch, "factor", lambda _c, _s: (0.22, 0.5, 2.0), without=lambda _c, _s: (0.0, 1.0)),
        "the branch multiplied by {factor:.6g}",
        source="OpenNMT/CTranslate2#1882",
    ),
    Hypothesis(
        "residual-scale",
        SUMS,
        "the residual stream multiplied by a factor that the file does not have",
        "add the stream as it is",
        _stream,
        Numbers(_stream, "factor", lambda _c, _s: (0.5, 0.9), without=lambda _c, _s: (0.0, 1.0)),
        "the residual stream multiplied by {factor:.6g}",
    ),
)
