"""Arithmetics that cannot be told apart where they were tried, and can by what diverges elsewhere in the trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from firstdiff.dumps import Trace
from firstdiff.judging.arithmetic import BY_NAME, Evidence, Fingerprint
from firstdiff.judging.arithmetic_composing import agreed, composed
from firstdiff.judging.arithmetic_options import option
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import Arithmetic
from firstdiff.model.engine import Model
from firstdiff.verdict import SiteVerdict, Status

TIED = ("linear", "attention")
"""Groups of which several arithmetics may fit: two ways to round to eleven bits part only at tiny numbers."""


def untied(
    model: Model, trace: Trace, found: Fingerprint, alignment: Alignment, sites: Sequence[SiteVerdict]
) -> Fingerprint | None:
    """Take another arithmetic of those that fit as well, where sites diverge from one and agree with the other.

    Parameters
    ----------
    model, trace, alignment
        The model's file, a trace made with it, and its layouts.
    found, sites
        The arithmetic that was found, and the sites judged in it.

    Returns
    -------
    The arithmetic, or None where there is no better one.
    """
    wrong = [s for s in sites if s.status is Status.DIVERGES and not s.segment]

    def better(phase: Fingerprint) -> Fingerprint:
        of = [s for s in wrong if found.of(len(trace.steps[s.site.step].tokens)) is phase]
        changed: dict[str, Evidence] = {}
        for group in TIED:
            here, evidence = [s for s in of if BY_NAME.get(s.op) == group], phase.groups.get(group)
            if evidence is None or not (evidence.fits or evidence.known) or evidence.level or not here:
                continue
            floor = option(group, evidence.name).floor
            others = [name for name in evidence.same if option(group, name).floor <= floor]
            left = {}
            for name in others:
                arithmetic = composed(phase.groups | {group: evidence.called(name)}, phase.arithmetic.output)
                left[name] = _wrong(model, trace, alignment, arithmetic, here)
            best = min(left, key=lambda name: left[name], default=None)
            if best is not None and left[best] < len(here):
                changed[group] = evidence.called(best)
        if not changed:
            return phase
        groups = agreed(phase.groups | _alike(phase, changed), ()) | changed
        return replace(phase, arithmetic=composed(groups, phase.arithmetic.output), groups=groups)

    if not found.phases:
        return None if (other := better(found)) is found else other
    phases = tuple((tokens, better(phase)) for tokens, phase in found.phases)
    if all(new is old for (_, new), (_, old) in zip(phases, found.phases, strict=True)):
        return None
    return replace(replace(found, phases=phases).of(len(trace.steps[0].tokens)), phases=phases)


def _alike(phase: Fingerprint, changed: dict[str, Evidence]) -> dict[str, Evidence]:
    """What has changed, and the other group in the same arithmetic, where that is one of those that fit it."""
    alike = dict(changed)
    for base in {evidence.base for evidence in changed.values()}:
        for group in TIED:
            evidence = phase.groups.get(group)
            names = [] if evidence is None else [n for n in evidence.same if n.partition("+held=")[0] == base]
            if evidence is not None and names and group not in alike:
                alike[group] = evidence.called(names[0])
    return alike


def _wrong(
    model: Model, trace: Trace, alignment: Alignment, arithmetic: Arithmetic, wrong: Sequence[SiteVerdict]
) -> int:
    """How many sites are not right in another arithmetic either."""
    probe = Replay(arithmetic, trace, alignment)
    chosen = {s.site for s in wrong}
    run_trace(model, trace, probe, chosen.__contains__)
    right = Status.AGREES, Status.INHERITS
    return sum(s.site in chosen and s.status not in right for s in probe.sites)
