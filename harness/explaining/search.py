"""Explaining one case: which hypothesis, or pair of them, gives the candidate's numbers on the candidate's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from math import inf, isfinite
from typing import Any

from firstdiff.explaining.failures import Failures
from firstdiff.explaining.residual import Part, left, part_of, rerun
from firstdiff.hypotheses.fitting import Numbers
from firstdiff.hypotheses.frame import Frame
from firstdiff.hypotheses.hypothesis import Hypothesis, Later, Scene, Values
from firstdiff.judging.case import Case
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.model.probe import Call

LOOSE = 20.0
"""How far above the bar a hypothesis may lie at a part of a product and still be tried at the whole: a few outputs and
tokens have other sizes than all."""

FIRST_LOOK = 128, 16
PAIR_LOOK = 48, 6
"""Outputs and tokens of a product that singles and pairs are tried at first."""

ALIKE = 2.0
"""Residuals that differ by less than this factor say the same: both are rounding."""

WAYS = 12  # of one hypothesis that pairs are made of


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """One or two hypotheses with their parameters; `on` is the one call of a segment, or None for all of them."""

    parts: tuple[tuple[Hypothesis, Values], ...]
    on: int | None = None

    @property
    def id(self) -> str:
        """Such as ``rope-base`` or ``weight-transposed + bias-missing``."""
        return " + ".join(h.id for h, _ in self.parts)

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The hypotheses without their parameters."""
        return tuple(h for h, _ in self.parts)

    def says(self, model: Model) -> str:
        """What is wrong with an engine of a model, with the parameters."""
        return "; ".join(h.told(values, model) for h, values in self.parts)

    def fix(self, model: Model) -> str:
        """What to do about it."""
        return "; ".join(h.advice(model) for h in self.hypotheses)

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of all parts."""
        return {name: value for _, values in self.parts for name, value in values.items()}

    def change(self, number: int, call: Call, scene: Scene) -> Call | None:
        """The call gone wrong in every part; None where one does not apply, or the fault is on another call."""
        if self.on is not None and number != self.on:
            return None
        frame = scene.frame(call)
        own = frame.own(call)
        for hypothesis, values in self.parts:
            changed = hypothesis.apply(own, scene, values)
            if changed is None:
                return None
            own = changed
        return frame.laid_back(own)


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """A fault that was tried, what it leaves of the error, and up to what that is an explanation."""

    fault: Fault
    residual: float
    bar: float

    @property
    def explains(self) -> bool:
        """Whether the fault gives the candidate's numbers."""
        return self.residual <= self.bar


def attempt(case: Case, scene: Scene, fault: Fault, *, part: Part | None = None, known: bool = False) -> Attempt | None:
    """Try one fault; None where it does not apply.

    Parameters
    ----------
    case, scene, fault
        What to try, and where.
    part
        A part of a product to try it at first.
    known
        Whether it explains another site: NaN and infinities then need no numbers beside them.
    """
    if part is not None:
        changed = fault.change(0, case.call, scene)
        return None if changed is None else _at(case, scene, fault, changed, part)
    done = rerun(case, scene.arithmetic, lambda number, call: fault.change(number, call, scene))
    if done is None:
        return None
    given, call = done
    found = left(case, scene.arithmetic, call, given, known=known)
    return Attempt(fault, found, case.bar(scene.arithmetic, call))


def _at(case: Case, scene: Scene, fault: Fault, changed: Call, part: Part | None) -> Attempt:
    """Try what a fault makes of the judged call, at a part of a product first."""
    bar = case.bar(scene.arithmetic, changed)
    if part is not None:
        found = part.residual(case, scene.arithmetic, changed)
        if not found <= LOOSE * bar:
            return Attempt(fault, found, bar)
    return Attempt(fault, left(case, scene.arithmetic, changed), bar)


def attempts(
    case: Case, scene: Scene, table: Mapping[str, Hypothesis], failures: Failures, *, pairs: bool = True
) -> list[Attempt]:
    """The best attempt of each hypothesis that applies, in the order of the table; where none explains, of pairs too.

    Parameters
    ----------
    case, scene, table
        What to explain, what surrounds it, and by what.
    failures
        Notes what cannot be tried.
    pairs
        Whether to try pairs.
    """
    tried = list(_singles(case, scene, table, failures))
    if not pairs or any(a.explains for a in tried):
        return tried
    # A pair says more than its better half, or nothing.
    best = min((a.residual for a in tried), default=inf)
    return tried + [a for a in _pairs(case, scene, table, tried, failures) if a.residual <= best / ALIKE]


def explaining(case: Case, tried: Iterable[Attempt]) -> list[Attempt]:
    """The attempts that explain the case, the first to be named first: fewer parts, less left, the table's order."""
    good = [a for a in tried if a.explains]
    if not good:
        return []
    fewest = min(len(a.fault.parts) for a in good)
    good = [a for a in good if len(a.fault.parts) == fewest]
    level = max(ALIKE * min(a.residual for a in good), case.noise)
    return sorted(good, key=lambda a: (a.residual > level, a.residual if a.residual > level else 0.0))


def _singles(case: Case, scene: Scene, table: Mapping[str, Hypothesis], failures: Failures) -> Iterator[Attempt]:
    part = part_of(case, *FIRST_LOOK)
    for hypothesis in table.values():
        with failures.at(case.site, hypothesis):
            yield from _best(case, scene, hypothesis, part)


def _best(case: Case, scene: Scene, hypothesis: Hypothesis, part: Part | None) -> Iterator[Attempt]:
    """The best attempt of a hypothesis, and what explains as well of its other ways, where they are no numbers."""
    best, tried = None, []
    for fault in _faults(case, scene, hypothesis):
        one = attempt(case, scene, fault, part=part)
        if one is None:
            continue
        tried.append(one)
        if best is None or one.residual < best.residual / ALIKE:
            best = one
            if best.residual <= case.noise and case.direct:
                break
    if best is None:
        return
    yield best
    for other in tried:
        named = all(isinstance(value, str) for value in other.fault.values.values())
        if named and other.explains and other.fault.values != best.fault.values:
            yield other


def _faults(case: Case, scene: Scene, hypothesis: Hypothesis) -> Iterator[Fault]:
    """The ways of a hypothesis in a case: at every call of the segment that it applies to, then at each alone."""
    frames = [scene.frame(call) for call in case.calls]
    calls = [frame.own(call) for frame, call in zip(frames, case.calls, strict=True)]
    numbers = [n for n, call in enumerate(calls) if hypothesis.where.matches(call)]
    if len(numbers) > 1:
        yield from (Fault(((hypothesis, values),)) for values in hypothesis.ways(calls[numbers[0]], scene, None))
    for number in numbers:
        if number == len(calls) - 1:
            tried = hypothesis.ways(calls[number], scene, frames[number].there(case.recorded))
        else:
            beside = replace(scene, later=_later(case, scene, number, frames[number]))
            tried = hypothesis.ways(calls[number], beside, case.recorded if _fits(hypothesis) else None)
        for values in tried:
            yield Fault(((hypothesis, values),), on=number if len(calls) > 1 else None)


def _fits(hypothesis: Hypothesis) -> bool:
    """Whether its ways can be fitted to what is observed at a later point."""
    return isinstance(hypothesis.ways, Numbers)


def _later(case: Case, scene: Scene, number: int, frame: Frame) -> Later:
    """What is judged at the end of a segment, given one of its calls as the candidate makes it."""

    def run(changed: Call) -> Array:
        done = rerun(case, scene.arithmetic, lambda n, _: frame.laid_back(changed) if n == number else None)
        assert done is not None
        return done[0]

    return Later(case.site.point, run)


def _pairs(
    case: Case,
    scene: Scene,
    table: Mapping[str, Hypothesis],
    singles: Iterable[Attempt],
    failures: Failures,
) -> Iterator[Attempt]:
    """Two faults of different stages at the judged call, the earlier stage first."""
    if case.segment or not isfinite(case.error):
        return
    applicable = [table[a.fault.id] for a in singles]
    part = part_of(case, *PAIR_LOOK)
    own = scene.frame(case.call).own(case.call)
    for first in sorted(applicable, key=lambda h: h.stage):
        with failures.at(case.site, first):
            for values in islice(first.ways(own, scene, None), WAYS):
                changed = first.apply(own, scene, values)
                if changed is None or changed.op is not own.op:
                    continue
                for second in applicable:
                    if second.stage <= first.stage or not second.where.matches(changed):
                        continue
                    with failures.at(case.site, first, second):
                        best = _second(case, scene, (first, values), second, changed, part)
                        if best is not None and best.explains:
                            yield best


def _second(
    case: Case,
    scene: Scene,
    first: tuple[Hypothesis, Values],
    second: Hypothesis,
    changed: Call,
    part: Part | None,
) -> Attempt | None:
    """The best second fault after a first one."""
    best: Attempt | None = None
    frame = scene.frame(case.call)
    for values in islice(second.ways(changed, scene, frame.there(case.recorded)), 2 * WAYS):
        both = second.apply(changed, scene, values)
        if both is None:
            continue
        tried = _at(case, scene, Fault((first, (second, values))), frame.laid_back(both), part)
        if best is None or tried.residual < best.residual:
            best = tried
            if best.explains:
                break
    return best if best is not None and best.residual < inf else None
