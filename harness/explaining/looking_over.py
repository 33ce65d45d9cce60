"""A second look at what explains a dump of 16 bits: whether what it leaves is rounding, number by number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from firstdiff.explaining.attempt import Attempt, Means
from firstdiff.explaining.measured.leftover import is_rounding
from firstdiff.explaining.measured.view import View, view_of
from firstdiff.explaining.residual import computed
from firstdiff.judging.case import Case
from firstdiff.judging.floors import passed_on


def looked_over(case: Case, means: Means, tried: list[Attempt]) -> list[Attempt]:
    """The attempts, of which those explain no more that leave something that stands out of what rounding leaves.

    In a dump of 16 bits a wrong explanation may leave no more than rounding does, but in a few numbers.
    """
    if not case.stored or case.segment or not any(a.explains for a in tried):
        return tried
    with np.errstate(all="ignore"):
        view = view_of(case, means.scene)
        return tried if view is None else [_looked_over(case, means, a, view) for a in tried]


def _looked_over(case: Case, means: Means, tried: Attempt, view: View) -> Attempt:
    rounds = any(h.rounds for h in tried.fault.hypotheses)
    if not tried.explains or rounds:  # numbers that round the other way stand out
        return tried
    with means.failures.at(case.site, *tried.fault.hypotheses):
        changed = tried.fault.change(0, case.call, means.scene)
        if changed is None or passed_on(means.scene.arithmetic, changed, case.inputs) > 1:
            return tried  # what its inputs lost is larger in some numbers than in others
        given = computed(changed, means.scene.arithmetic)
        if given.shape != case.computed.shape or is_rounding(view, given, tried.residual):
            return tried
        return replace(tried, bar=0.0)
    return tried
