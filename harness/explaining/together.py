"""Several cases of one operation explained together: which faults give the candidate's numbers at every one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from firstdiff.explaining.attempt import Attempt, Means, attempt, explaining
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.search import search
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene
from firstdiff.judging.case import Case


@np.errstate(all="ignore")  # hypotheses run on a candidate's NaN and infinities too
def together(
    sought: Iterable[Case],
    wrong: Sequence[Case],
    right: Sequence[Case],
    scene: Scene,
    table: Mapping[str, Hypothesis],
    failures: Failures,
) -> tuple[list[Attempt], list[Attempt]]:
    """Find the faults that explain all cases that are `wrong`, the first to be named first.

    Parameters
    ----------
    sought
        Cases at which the table is tried, one after another until something is found: a case that holds all tokens
        tells apart what a case of one token does not, and a case of one step knows where the step begins.
    wrong, right
        What must be explained, and what the candidate has right.
    scene, table, failures
        As in :class:`firstdiff.explaining.attempt.Means`.

    Returns
    -------
    The faults that leave what is right as it is, and those that do not: they would have to come and go.
    """
    means = Means(scene, table, failures, measuring=False)
    for case in sought:
        tried = explaining(case, search(case, means).tried)
        good = [a for a in tried if all(_explains(a, other, scene, failures) for other in wrong if other is not case)]
        if good:
            steady = [a for a in good if all(_spares(a, other, scene, failures) for other in right)]
            return steady, [a for a in good if a not in steady]
    return [], []


def _explains(known: Attempt, case: Case, scene: Scene, failures: Failures) -> bool:
    with failures.at(case.site, *known.fault.hypotheses):
        tried = attempt(case, scene, known.fault, known=True)
        return tried is not None and tried.explains
    return False


def _spares(known: Attempt, case: Case, scene: Scene, failures: Failures) -> bool:
    """Whether a fault leaves a case as it is that the candidate has right."""
    with failures.at(case.site, *known.fault.hypotheses):
        tried = attempt(case, scene, known.fault, known=True)
        return tried is None or tried.residual <= case.floor
    return False
