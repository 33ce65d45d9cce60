"""Whether what was taken for an unknown arithmetic is a fault, and what the arithmetic is behind one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

from firstdiff.dumps import Site
from firstdiff.explaining.attempt import Fault, Means
from firstdiff.explaining.collecting import Judged, collect, surroundings
from firstdiff.explaining.covering import Covering
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.search import search
from firstdiff.hypotheses import TABLE, Hypothesis, Scene
from firstdiff.judging.arithmetic import BY_NAME, STRONG, Fingerprint
from firstdiff.judging.arithmetic_options import OPTIONS
from firstdiff.judging.arithmetic_search import UNKNOWN, regrouped
from firstdiff.judging.case import Case
from firstdiff.judging.layouts import ROTATED
from firstdiff.judging.measure import holds_numbers
from firstdiff.model.holding import ELEMENTS
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call, Change
from firstdiff.verdict import Explanation, SiteVerdict, Status

ARITHMETIC = "other-arithmetic"
"""The hypothesis that says how sites are computed: a fault only where the engine computes its other sites otherwise."""

MOSTLY = 0.25
"""What a fault may leave of an error that is computed in another arithmetic than was taken.

Weights held in fp8 change a product by 2.8e-2, an input that was not normed by 0.16
(``tests/bench/trust.py --part faults --only 2502``). What is found so is taken only where it accuses no more sites.
"""

PAIR = 2
"""Sites at which a fault is seen before it is taken for a common one."""


def has_faults(judged: Judged, *, failures: Failures, table: Mapping[str, Hypothesis] = TABLE) -> bool:
    """Whether what was taken for an unknown arithmetic is a fault: a hypothesis explains it, at the plain floor.

    It must explain two sites of one point.

    Parameters
    ----------
    judged
        A trace, judged at the levels that were found.
    failures
        Notes the hypotheses that cannot be tried.
    table
        The hypotheses to try.
    """
    excused: dict[str, list[Site]] = {}
    for s in judged.sites:
        beyond = s.tight is not None and s.local_error is not None and s.tight < s.local_error
        if beyond and not s.segment and s.layer is not None:  # a fault of the logits alone is no arithmetic's
            excused.setdefault(s.point, []).append(s.site)
    wanted = frozenset(site for of in excused.values() for site in (of[0], of[len(of) // 2]))
    if not wanted:
        return False
    tight = replace(judged, found=judged.found.tight)
    covering = Covering(Means(surroundings(tight), _faults(table), failures, measuring=False), pairs=0)
    covering.together(_cases(tight, wanted))
    return any(len(known.at) > 1 for known in covering.known)


def common_fault(judged: Judged, *, failures: Failures, table: Mapping[str, Hypothesis] = TABLE) -> Change | None:
    """Find a fault that all products of Q and K have, and others with them.

    Where all of these are wrong, nothing tells the order of their rows, nor the arithmetic that they are computed in;
    once it is known what is wrong with them, they tell. Parameters are those of :func:`has_faults`.

    Returns
    -------
    What makes a call as the engine does; None where such a product is right, or nothing takes most of the error of two.
    """
    of = [s for s in judged.sites if s.op == linear.__name__ and not s.segment and s.local_error is not None]
    products = [s for s in of if s.status is Status.DIVERGES or _has_numbers(judged, s.site)]
    heads = [s for s in products if s.point in ROTATED] or products
    if not heads or any(s.status is not Status.DIVERGES for s in heads):
        return None
    least = MOSTLY * min(s.local_error or 0.0 for s in heads)  # what is far less wrong may be another arithmetic alone
    wrong = [s.site for s in products if s.status is Status.DIVERGES and (s.local_error or 0.0) >= least]
    told = [site for site in wrong if site.point not in ROTATED]  # the order of the others may be another one
    if len(told) < PAIR:
        told = wrong
    alike = [site for site in told if site.point == told[0].point]
    faults = {id_: h for id_, h in _faults(table).items() if h.where.ops is None or linear in h.where.ops}
    means = Means(surroundings(judged), faults, failures, measuring=False)
    for pair in dict.fromkeys(frozenset((of[0], of[len(of) // 2])) for of in (told, alike)):
        change = _shared(_cases(judged, pair), means)
        if change is not None:
            return change
    return None


def _has_numbers(judged: Judged, site: Site) -> bool:
    """Whether what was recorded of a site tells anything: what is NaN everywhere agrees with everything."""
    source = judged.alignment.source(site)
    return source not in judged.trace or holds_numbers(judged.trace[source])


def _shared(cases: Sequence[Case], means: Means) -> Change | None:
    """The fault that takes most of the error at two sites."""
    if len(cases) < PAIR:
        return None
    one, other = (search(case, means, pairs=False).tried for case in cases)
    mostly = [MOSTLY * case.error for case in cases]
    for a in sorted(one, key=lambda a: a.residual):
        if a.residual <= mostly[0] and any(b.fault.same(a.fault) and b.residual <= mostly[1] for b in other):
            return partial(_with, a.fault, means.scene)
    return None


def engines_own(
    found: Fingerprint, sites: Iterable[SiteVerdict], explanations: Iterable[Explanation], lengths: Sequence[int]
) -> Fingerprint | None:
    """Say which arithmetic the engine may use in all of a group, where explanations say that some sites are in it.

    Only a group whose arithmetic is hardly known can be meant. Where its other sites are far more exact than those that
    are explained, the engine does not compute them so, and the sites are faulty.

    Parameters
    ----------
    found
        The arithmetic that was found.
    sites, explanations
        The sites judged in it, and why some diverge.
    lengths
        The tokens of each step: steps of other numbers may have another arithmetic.

    Returns
    -------
    The arithmetic of the trace with those groups changed; None where there is no such group.
    """
    known = [s for s in sites if s.op in BY_NAME and s.local_error is not None and not s.segment]
    told = [e for e in explanations if ARITHMETIC in (e.hypothesis or "").split(" + ")]
    if not found.phases:
        changed = _changed(found, known, told)
        return regrouped(found, changed) if changed else None
    phases = []
    for tokens, phase in found.phases:
        changed = _changed(phase, [s for s in known if found.of(lengths[s.step]) is phase], told)
        phases.append((tokens, regrouped(phase, changed) if changed else phase))
    if all(new is old for (_, new), (_, old) in zip(phases, found.phases, strict=True)):
        return None
    return replace(replace(found, phases=tuple(phases)).of(lengths[0]), phases=tuple(phases))


def _changed(found: Fingerprint, sites: Iterable[SiteVerdict], told: Iterable[Explanation]) -> dict[str, str]:
    """The groups of one phase that the engine may compute otherwise, with the option of each."""
    of: dict[str, list[SiteVerdict]] = {}
    for s in sites:
        of.setdefault(BY_NAME[s.op], []).append(s)
    changed: dict[str, str] = {}
    for explanation in told:
        name = explanation.attributes["arithmetic"]
        for group, judged in of.items():
            explained = [s.local_error or 0.0 for s in judged if s.site in explanation.sites]
            evidence = found.groups.get(group, UNKNOWN)
            alike = {n.partition("+held=")[0] for n in evidence.same}
            known = not (evidence.weak or evidence.level or name in alike)
            if not explained or not found.groups or known:
                continue
            right = [s.local_error or 0.0 for s in judged if s.status in (Status.AGREES, Status.INHERITS)]
            if explanation.hypothesis == ARITHMETIC and right and STRONG * median(right) < min(explained):
                continue
            if group == "embedding" and name in ELEMENTS:
                changed.setdefault(group, f"f32+held={name}")
            elif name in OPTIONS[group]:
                changed.setdefault(group, name if evidence.held is None else f"{name}+held={evidence.held}")
    return changed


def _with(fault: Fault, scene: Scene, call: Call) -> Call:
    """A call with a fault; itself where that does not apply to it."""
    return fault.change(0, call, scene) or call


def _faults(table: Mapping[str, Hypothesis]) -> dict[str, Hypothesis]:
    """The hypotheses that are faults wherever they are found, and no arithmetic."""
    return {id_: h for id_, h in table.items() if h.everywhere != "arithmetic"}


def _cases(judged: Judged, wanted: Collection[Site]) -> list[Case]:
    """The cases of some sites. How far they err where they are right is not known: their floor stands for it."""
    cases: list[Case] = []
    collect(judged, wanted, lambda case: cases.append(replace(case, noise=case.floor)))
    return cases
