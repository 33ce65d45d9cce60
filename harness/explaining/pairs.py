"""Pairs: two faults of different stages at one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf, isfinite

import numpy as np

from firstdiff.explaining.attempt import Attempt, Fault, Means, at_part
from firstdiff.explaining.residual import Part, computed, part_of
from firstdiff.explaining.side_by_side import side_by_side
from firstdiff.hypotheses.hypothesis import Hypothesis, Values
from firstdiff.judging.case import Case
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call

PAIR_LOOK = 48, 6
"""Outputs and tokens of a product that pairs are tried at first."""

WAYS = 12  # of one hypothesis that pairs are made of


def pairs_of(case: Case, means: Means, singles: Iterable[Attempt]) -> Iterator[Attempt]:
    """Yield the pairs that explain a case whose judged call is the only one, the earlier stage first."""
    if case.segment or not isfinite(case.error):
        return
    applicable = [means.table[a.fault.id] for a in singles if a.fault.id in means.table]
    part = part_of(case, *PAIR_LOOK)

    def tried(first: Hypothesis, means: Means) -> list[Attempt]:
        found: list[Attempt] = []
        with means.failures.at(case.site, first):
            for values in islice(first.ways(case.call, means.scene, None), WAYS):
                means.budget.check()
                changed = first.apply(case.call, means.scene, values)
                if changed is None or changed.op is not case.call.op:
                    continue
                for second in applicable:
                    if second.stage <= first.stage or not second.where.matches(changed):
                        continue
                    with means.failures.at(case.site, first, second):
                        best = _second(case, means, (first, values), second, changed, part)
                        if best is not None and best.explains and not _adds_nothing(case, means, best):
                            found.append(best)
        return found

    yield from side_by_side(tried, sorted(applicable, key=lambda h: h.stage), means)


def _adds_nothing(case: Case, means: Means, pair: Attempt) -> bool:
    """Whether two faults leave nothing of a product: any two that do give the same numbers, and none is known by it."""
    both = pair.fault.change(0, case.call, means.scene)
    if both is None or case.call.op is not linear:
        return False
    without = both.with_arguments(x=np.zeros_like(both.argument("x")))
    given, nothing = (computed(call, means.scene.arithmetic) for call in (both, without))
    return np.array_equal(given, nothing, equal_nan=True)


def _second(
    case: Case,
    means: Means,
    first: tuple[Hypothesis, Values],
    second: Hypothesis,
    changed: Call,
    part: Part | None,
) -> Attempt | None:
    """The best second fault after a first one."""
    best: Attempt | None = None
    scene = means.scene
    for values in islice(second.ways(changed, scene, case.recorded), 2 * WAYS):
        means.budget.check()
        both = second.apply(changed, scene, values)
        if both is None:
            continue
        tried = at_part(case, scene, Fault((first, (second, values))), both, part)
        if best is None or tried.residual < best.residual:
            best = tried
            if best.explains:
                break
    return best if best is not None and best.residual < inf else None
