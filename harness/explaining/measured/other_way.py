"""What numbers that round the other way leave of a statement that something is rounded within an operation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from firstdiff.dumps.points import axes_of
from firstdiff.explaining.residual import computed
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values
from firstdiff.judging.case import Case
from firstdiff.judging.measure import measure
from firstdiff.model.arithmetic import Array
from firstdiff.model.probe import Call

WITHIN = ("measured-rounded", "measured-sum")
"""Statements that numbers are rounded within the operation: of those near the middle between two codes, the candidate
may have rounded some the other way, because it had other digits than the dump kept."""

AT_MOST = 2.5
"""How many times the largest rounding the floor of stored inputs is."""

TIMES = 4
"""How often it is tried: of one token few numbers go the other way, and each time others."""

MORE = 2.0
"""How many times what our own jitter changes the candidate's may."""

SUMMED = 4 * float(np.finfo(np.float32).eps)
"""What a sum in another order takes, relative to its terms."""


def rounds_otherwise(case: Case, scene: Scene, stated: Hypothesis, values: Values) -> float:
    """The error that a statement shows against itself if its inputs have other digits than the dump kept.

    Where the dump kept all, they are off by what a sum in another order changes.
    """
    rng = np.random.default_rng(0)
    most = case.inputs / AT_MOST if case.inputs else SUMMED

    def jittered(x: object) -> object:
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
            return x
        return (x * (1 + rng.uniform(-most, most, x.shape))).astype(x.dtype)

    def given(call: Call) -> Array | None:
        changed = stated.change(call, scene, values)
        return None if changed is None else computed(changed, scene.arithmetic)

    own, most_off = given(case.call), 0.0
    for _ in range(TIMES):
        other = given(replace(case.call, inputs=tuple(jittered(x) for x in case.call.inputs)))
        if own is None or other is None:
            return 0.0
        axes = axes_of(case.site.point, own.ndim)
        most_off = max(most_off, measure(other, own, axes=axes, floor=case.floor, seen=case.seen).error)
    return MORE * most_off
