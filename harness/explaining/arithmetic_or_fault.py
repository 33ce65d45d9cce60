"""Whether what was taken for an unknown arithmetic is a fault, and what the arithmetic is behind one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from firstdiff.dumps import Site, Trace
from firstdiff.explaining.attempt import Means
from firstdiff.explaining.collecting import Judged, collect, surroundings
from firstdiff.explaining.covering import Covering
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.search import search
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.case import Case
from firstdiff.judging.layouts import ROTATED, Alignment
from firstdiff.model.engine import Model
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.verdict import SiteVerdict, Status

TWO = 2
"""Sites that must say the same."""

MOSTLY = 0.1
"""What a fault may leave of an error that is computed in another arithmetic than was taken."""


def has_faults(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    sites: Sequence[SiteVerdict],
    *,
    failures: Failures,
    table: Mapping[str, Hypothesis] = TABLE,
) -> bool:
    """Whether what was taken for an unknown arithmetic is a fault: a hypothesis explains it, at the plain floor.

    It must explain two sites of one point. `sites` are the trace's, judged at the levels that were found. `failures`
    notes the hypotheses that cannot be tried.
    """
    excused: dict[str, list[Site]] = {}
    for s in sites:
        beyond = s.tight is not None and s.local_error is not None and s.tight < s.local_error
        if beyond and not s.segment and s.layer is not None:  # a fault of the logits alone is no arithmetic's
            excused.setdefault(s.point, []).append(s.site)
    wanted = frozenset(site for of in excused.values() for site in (of[0], of[len(of) // 2]))
    if not wanted:
        return False
    faults = {id_: h for id_, h in table.items() if h.everywhere != "arithmetic"}
    judged = Judged.of(model, trace, found.tight, alignment, sites)
    covering = Covering(Means(surroundings(judged), faults, failures), pairs=0)
    cases: list[Case] = []
    collect(judged, wanted, lambda case: cases.append(replace(case, noise=case.floor)))
    covering.together(cases)
    return any(len(known.at) > 1 for known in covering.known)


def common_fault(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    sites: Sequence[SiteVerdict],
    *,
    failures: Failures,
    table: Mapping[str, Hypothesis] = TABLE,
) -> Callable[[Call], Call] | None:
    """Find a fault that all products of Q and K have, and others with them.

    Where all of these are wrong, nothing tells the order of their rows, nor the arithmetic that they are computed in;
    once it is known what is wrong with them, they tell. Parameters are those of :func:`has_faults`.

    Returns
    -------
    What makes a call as the engine does; None where such a product is right, or nothing takes most of the error of two.
    """
    products = [s for s in sites if s.op == linear.__name__ and not s.segment and s.local_error is not None]
    heads = [s for s in products if s.point in ROTATED] or products
    if not heads or any(s.status is not Status.DIVERGES for s in heads):
        return None
    least = MOSTLY * min(s.local_error or 0.0 for s in heads)  # what is far less wrong may be another arithmetic alone
    wrong = [s.site for s in products if s.status is Status.DIVERGES and (s.local_error or 0.0) >= least]
    if len(wrong) < TWO:
        return None
    faults = {id_: h for id_, h in table.items() if h.everywhere != "arithmetic" and linear in (h.where.ops or ())}
    judged = Judged.of(model, trace, found, alignment, sites)
    means = Means(surroundings(judged), faults, failures)
    cases: list[Case] = []
    told = [site for site in wrong if site.point not in ROTATED] or wrong  # the order of the others may be another one
    wanted = frozenset((told[0], told[len(told) // 2]))
    collect(judged, wanted, lambda case: cases.append(replace(case, noise=case.floor)))
    tried = [search(case, means, pairs=False).tried for case in cases]
    if len(tried) < TWO:
        return None
    for one in sorted(tried[0], key=lambda a: a.residual):
        if one.residual > MOSTLY * cases[0].error:
            return None
        if any(one.fault.same(a.fault) and a.residual <= MOSTLY * cases[1].error for a in tried[1]):
            return lambda call: one.fault.change(0, call, means.scene) or call
    return None
