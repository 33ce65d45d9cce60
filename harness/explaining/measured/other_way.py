"""What numbers that round the other way leave of a statement that something is rounded within an operation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from firstdiff.dumps.points import axes_of
from firstdiff.explaining.attempt import Attempt, Fault, Means
from firstdiff.explaining.measured.alteration import laid_out
from firstdiff.explaining.measured.view import View, view_of
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


NEAR = 2.0
"""A rounding takes more of the error, over all tokens, than one over this leaves: nothing else does so by chance."""


def rounds(fault: Fault) -> bool:
    """Whether a fault is that numbers are rounded within the operation."""
    return fault.id in WITHIN or any(h.rounds for h in fault.hypotheses)


def turned_over(case: Case, means: Means, tried: list[Attempt]) -> list[Attempt]:
    """The attempts, of which those explain too that round, and leave what was rounded the other way."""
    if not case.direct or any(a.explains for a in tried):
        return tried
    roundings = [
        a for a in tried if len(a.fault.parts) == 1 and a.fault.hypotheses[0].rounds and NEAR * a.residual < case.error
    ]
    if not roundings:
        return tried
    with np.errstate(all="ignore"):
        view = view_of(case, means.scene)
        if view is None:
            return tried
        return [_turned_over(case, means, a, view) if a in roundings else a for a in tried]


def _turned_over(case: Case, means: Means, tried: Attempt, view: View) -> Attempt:
    with means.failures.at(case.site, *tried.fault.hypotheses):
        other = turned(case, means, tried, view)
        return other if other.explains else tried
    return tried


def turned(case: Case, means: Means, tried: Attempt, view: View) -> Attempt:
    """A rounding that explains if what it leaves are numbers that were rounded the other way."""
    scene = means.scene
    changed = None if tried.residual > case.error else tried.fault.change(len(case.segment), case.call, scene)
    if changed is None:
        return replace(tried, bar=0.0)
    given = laid_out(np.asarray(computed(changed, scene.arithmetic), np.float64), case.site.point)[0]
    left = np.where(view.error != 0, view.result + view.error - given.take(view.rows, view.token_axis), 0)
    if NEAR**2 * view.squares(left).sum() > view.squares(view.error).sum():
        return replace(tried, bar=0.0)
    means.budget.check()
    if tried.explains:
        return tried
    ((stated, values),) = tried.fault.parts
    return replace(tried, bar=rounds_otherwise(case, scene, stated, values))


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
