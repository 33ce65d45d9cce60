"""Sites that agree, and an explanation's fault: whether it is absent there, or too small there to be seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from firstdiff.dumps import Site
from firstdiff.dumps.points import axes_of
from firstdiff.explaining.residual import computed, rerun
from firstdiff.explaining.search import Fault
from firstdiff.hypotheses import Scene
from firstdiff.judging.case import Case
from firstdiff.judging.measure import measure
from firstdiff.model.terms import terms
from firstdiff.verdict.ranges import extent


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a fault would be seen, of the sites that agree.

    Parameters
    ----------
    hidden
        Sites at which it would change less than rounding may: it may be there or not.
    absent
        Sites at which it would be seen, and is not.
    """

    hidden: tuple[Site, ...]
    absent: tuple[Site, ...]

    def says(self, layers: int, steps: int) -> str | None:
        """Where the fault may be and cannot be seen, in words, of so many layers and steps; None where nowhere."""
        if not self.hidden:
            return None
        return f"below rounding, and so perhaps there too: {extent(self.hidden, layers, steps)}"


def reach(fault: Fault, agreeing: Iterable[Case], scene: Scene) -> Reach:
    """Sort the sites that agree by whether a fault would be seen there.

    Parameters
    ----------
    fault
        What explains other sites of the same points.
    agreeing
        Sites of these points that agree, as :class:`Case` has the diverging ones. They are asked for one by one.
    scene
        What surrounds them.

    Returns
    -------
    The sites to which the fault applies.
    """
    seen: dict[Site, bool] = {}
    for case in agreeing:
        size = change(fault, case, scene)
        if size is not None:
            seen[case.site] = size > case.floor
    return Reach(tuple(s for s, large in seen.items() if not large), tuple(s for s, large in seen.items() if large))


def change(fault: Fault, case: Case, scene: Scene) -> float | None:
    """How much a fault would change at a site, as a local error; None where it does not apply.

    It is held against what the right call gives, and not against what was recorded.
    """
    with np.errstate(all="ignore"):
        done = rerun(case, scene.arithmetic, lambda number, call: fault.change(number, call, scene))
        if done is None:
            return None
        given, _ = done
        right = computed(case.call, scene.arithmetic)
        if given.shape != right.shape:
            return float("inf")
        size = measure(
            given,
            right,
            axes=axes_of(case.site.point, right.ndim),
            floor=case.floor,
            seen=case.seen,
            terms=lambda: terms(case.call),
        )
    return size.error
