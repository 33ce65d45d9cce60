"""Whether what was taken for an unknown arithmetic is a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from firstdiff.dumps import Site, Trace
from firstdiff.explaining.attempt import Means
from firstdiff.explaining.collecting import Judged, collect, surroundings
from firstdiff.explaining.covering import Covering
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.case import Case
from firstdiff.judging.layouts import Alignment
from firstdiff.model.engine import Model
from firstdiff.verdict import SiteVerdict


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
