"""What the trials of a group of operations say of its arithmetic: which option leaves least, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from firstdiff.judging.arithmetic import HANDFUL, STRONG, Evidence
from firstdiff.judging.arithmetic_attempts import Trial
from firstdiff.judging.arithmetic_options import OPTIONS, option
from firstdiff.model.holding import twin

CEILINGS = {"linear": 5e-2, "norm": 1e-2, "attention": 2e-2, "results": 1e-2}
"""Errors that an unknown arithmetic can have at most.

linear: quantised activations make up to 3.5e-2 on real ones. attention: bfloat16 operands make 4e-3, four times
that for sums kept in them too. norm, results: one store in bfloat16 is 4e-3. How a cache was rounded is known, or a
fault.
"""

ALONE = 5e-3
"""The same where a group has one point, which can be like no other: what operands in bfloat16 make."""

STANDS_OUT = 4.0
"""A site diverges from so many times the level that its point shows in the other layers."""

ALIKE = 10.0
"""An arithmetic's errors at the points of a group are within this factor of each other; a fault's are not."""

SHARE = 0.75
"""The share of a group's points that an arithmetic must fit, or show at."""

ROUNDING = 0.25
"""What a fault leaves of an error at most, once it is taken out: see
:func:`firstdiff.judging.systematic.rest`."""

LAYERS = 3
"""Layers from which a point speaks for itself."""

TINY = 1e-12
"""An error that is as good as none."""

FAR = 0.1
"""The part of its floor that an arithmetic of narrow results leaves, where it is the engine's own."""

SAME = 1.05
"""Options whose errors are this near to each other are the same arithmetic on these numbers."""

F16_SUMS = 1.12, 2.24
"""Bounds of how much further a sum in f16 is from ours than from the exact one, if it errs by 0.5 to 2 times ours."""


def evidence_of(group: str, trials: Sequence[Trial]) -> Evidence:
    """The option that leaves the least over all sites, and how sure that is."""
    names = dict.fromkeys((*OPTIONS[group], *(name for t in trials for name in t.errors)))
    tried = {name: [t for t in trials if name in t.errors] for name in names}
    most = min(SHARE * len(trials), max(map(len, tried.values())))
    options = [name for name, found in tried.items() if len(found) >= most]
    middle = {name: median(t.errors[name] for t in tried[name]) for name in options}
    least = min(middle.values())
    beyond = {name: sum(t.errors[name] > t.floors[name] for t in tried[name]) for name in options}
    name = min((n for n in options if middle[n] <= SAME * least), key=lambda n: beyond[n])  # the first of several
    if group == "embedding" and beyond.get("f32") == 0:  # a table that fits as the file has it needs no word
        name = "f32"
    fits = at_floor(name, tried[name])
    same = tuple(
        n
        for n in options
        if n != name
        and middle[n] <= SAME * least
        and (at_floor(n, tried[n]) if fits else beyond[n] <= beyond[name])  # where many are wrong, the right ones tell
    )
    others = [n for n in options if n != name and n not in same and not _twins(n, name)]
    rivals = {n: _against(tried[n], n, name) for n in others}
    second = min(rivals, key=lambda n: rivals[n], default=None)
    evidence = Evidence(
        name=name,
        error=middle[name],
        runner_up=second,
        strength=np.inf if second is None else rivals[second],
        sites=len(trials),
        fits=fits,
        same=same,
    )
    if evidence.fits:
        return evidence
    known = _most_at_floor(group, trials, tuple(names))
    if known is not None:  # an arithmetic, and faults at many sites
        error = median(t.errors[known] for t in tried[known])
        same = _same(known, [t for t in trials if known in t.fitting], tuple(names))
        return replace(evidence, name=known, error=error, runner_up=None, strength=np.inf, same=same, known=True)
    if "f32" in middle and (evidence.weak or evidence.error > CEILINGS.get(group, np.inf)):
        # None is nearer than the others, or it is by chance: the exact one is to be measured against.
        evidence = replace(evidence, name="f32", error=middle["f32"])
    return _unknown(group, evidence, tried[evidence.name])


def at_floor(name: str, trials: Sequence[Trial]) -> bool:
    """Whether an option is at its floor at most points."""
    tried = [t for t in trials if name in t.errors]
    if len(tried) < SHARE * len(trials):
        return False
    return _share(tried, lambda part: median(t.errors[name] / t.floors[name] for t in part) <= 1) >= SHARE


def _twins(one: str, other: str) -> bool:
    """Whether two options hold weights in the same kind, but for how its codes are made: nobody asks which."""
    (base, _, kind), (its, _, its_kind) = one.partition("+held="), other.partition("+held=")
    return base == its and bool(kind) and twin(kind) == its_kind


def _most_at_floor(group: str, trials: Sequence[Trial], options: Sequence[str]) -> str | None:
    """The option at whose floor, and nearest to of those that are, some sites are, and hardly any at another's alone.

    One that stores its results has a high floor: it must be far below.
    """
    # By the trial's number: of an embedding several rows are tried, at one site.
    fitting = {name: {i for i, t in enumerate(trials) if _clearly(group, name, t)} for name in options}
    least = [SAME * min((t.errors[n] for n in options if i in fitting[n]), default=0.0) for i, t in enumerate(trials)]
    nearest = {n: sum(trials[i].errors[n] <= least[i] for i in fitting[n]) for n in options}
    best = max(options, key=lambda name: nearest[name])
    others = max(len(of - fitting[best]) for of in fitting.values())
    enough = nearest[best] >= HANDFUL or sum(_alone(best, trials[i]) for i in fitting[best]) >= LAYERS
    return best if enough and (nearest[best] >= STRONG * others or prevails(best, trials)) else None


def _alone(name: str, trial: Trial) -> bool:
    """Whether every other option leaves several times as much at a site."""
    others = [error for n, error in trial.errors.items() if n != name and not _twins(n, name)]
    return bool(others) and min(others) >= STRONG * trial.errors[name]


def _same(known: str, right: Sequence[Trial], options: Sequence[str]) -> tuple[str, ...]:
    """The options that leave just as much where a known one is right; few may not have been tried at all of these."""
    most = SAME * median(t.errors[known] for t in right)
    tried = {n: [t for t in right if n in t.errors] for n in options if n != known}
    enough = {n: found for n, found in tried.items() if len(found) >= SHARE * len(right)}
    others = (n for n, found in enough.items() if all(n in t.fitting for t in found))
    return tuple(n for n in others if median(t.errors[n] for t in tried[n]) <= most)


def prevails(name: str, trials: Sequence[Trial]) -> bool:
    """Whether an option is at its floor in most layers, at each point that some layers have.

    The other layers are then faulty. They are no evidence for another arithmetic because they are below its floor,
    which may be so wide that the right layers are below it too.
    """
    at: dict[str, list[bool]] = {}
    for trial in trials:
        at.setdefault(trial.site.point, []).append(name in trial.fitting)
    several = [fits for fits in at.values() if len(fits) >= LAYERS]
    return bool(several) and all(2 * sum(fits) > len(fits) for fits in several)


def _clearly(group: str, name: str, trial: Trial) -> bool:
    """Whether an option is at its floor at a site; one that stores its results, far below it."""
    stores = option(group, name).weights_and_results is not None
    return name in trial.fitting and (not stores or trial.errors[name] <= FAR * trial.floors[name])


def _against(trials: Sequence[Trial], rival: str, best: str) -> float:
    """How many times larger a rival's errors are, at the point that speaks most against it."""
    return max(
        median(t.errors[rival] for t in part) / max(median(t.errors.get(best, np.inf) for t in part), TINY)
        for part in parts_of(trials).values()
    )


def _unknown(group: str, evidence: Evidence, trials: Sequence[Trial]) -> Evidence:
    """Evidence with a level, where what is left looks like an arithmetic's rounding and not like a fault."""
    name = evidence.name
    showing = [
        median(t.errors[name] for t in part)
        for part in parts_of(trials).values()
        if median(t.errors[name] / t.floors[name] for t in part) > 1
    ]
    rests = [t.rests[name] for t in trials if name in t.rests]
    ceiling = CEILINGS.get(group, 0.0) if len(parts_of(trials)) > 1 else min(ALONE, CEILINGS.get(group, 0.0))
    plausible = (
        len(showing) >= SHARE * len(parts_of(trials))
        and max(showing) <= min(ceiling, ALIKE * min(showing))
        and median(rests or [0.0]) >= ROUNDING
    )
    if not plausible:
        return evidence
    return replace(evidence, level=True, ceiling=ceiling, like="f16-sums" if _of_f16_sums(trials) else None)


def _of_f16_sums(trials: Sequence[Trial]) -> bool:
    """Whether errors are as large as sums in f16 make them, in whatever order.

    Two such sums in different orders are root two times further from each other than from the exact one.
    """
    pairs = [(t.errors["f16-sums"], t.errors["f16-operands"]) for t in trials if "f16-sums" in t.errors]
    return bool(pairs) and F16_SUMS[0] <= median(a / b for a, b in pairs) <= F16_SUMS[1]


def parts_of(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """The trials of each point, and type of weight."""
    parts: dict[str, list[Trial]] = {}
    for trial in trials:
        parts.setdefault(trial.part, []).append(trial)
    return parts


def _share(trials: Sequence[Trial], holds: Callable[[list[Trial]], bool]) -> float:
    """The share of points that something holds for."""
    parts = parts_of(trials).values()
    return sum(holds(part) for part in parts) / len(parts)
