"""Trying one fault in one case: what it leaves of the error, and whether that explains the case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from firstdiff.explaining.budget import Budget
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.residual import Part, left, rerun
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values
from firstdiff.judging.case import Case
from firstdiff.model.engine import Model
from firstdiff.model.probe import Call
from firstdiff.verdict import Measured

LOOSE = 20.0
"""How far above the bar a hypothesis may lie at a part of a product and still be tried at the whole: a few outputs and
tokens have other sizes than all."""

ALIKE = 2.0
"""Residuals that differ by less than this factor say the same: both are rounding."""

ROUND = 2
"""Significant digits up to which a number is one that somebody may have written; one with more was fitted, and a
reading without such a number says more: positions that are 91 further on, and not angles times 11.11111."""

LITTLE, FAR = 2.0, 1000.0
"""Floors that are little where nothing explains, and how many times that an error is that is far larger."""

Place = tuple[int, int]
"""The step of a call and its number there."""


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """What explaining goes by.

    Parameters
    ----------
    scene, table
        What surrounds the calls, and the hypotheses.
    failures
        Notes what cannot be tried.
    budget
        The time.
    measuring
        Whether to measure what no hypothesis explains. Whether an unknown arithmetic is a fault is no question for it:
        much can be measured of any.
    """

    scene: Scene
    table: Mapping[str, Hypothesis]
    failures: Failures
    budget: Budget = field(default_factory=Budget)
    measuring: bool = True

    def at(self, case: Case) -> Means:
        """The same for one case: in the arithmetic of its step."""
        if case.arithmetic in (None, self.scene.arithmetic):
            return self
        return replace(self, scene=replace(self.scene, arithmetic=case.arithmetic))


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """One or two hypotheses with their parameters.

    Of a segment `on` is the one call that goes wrong, or None for all of them; those of some `layers`, where these are
    given. `measured` is the evidence of a statement that was measured.
    """

    parts: tuple[tuple[Hypothesis, Values], ...]
    on: int | None = None
    layers: frozenset[int | None] | None = None
    measured: Measured | None = None

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

    @property
    def fitted(self) -> bool:
        """Whether it has a number of more digits than people write."""
        return any(isinstance(v, float) and float(f"{v:.{ROUND}g}") != v for v in self.values.values())

    def same(self, other: Fault) -> bool:
        """Whether it is another fault, wherever that is."""
        return self.id == other.id and all(a == b for (_, a), (_, b) in zip(self.parts, other.parts, strict=True))

    def change(self, number: int, call: Call, scene: Scene) -> Call | None:
        """The call gone wrong in every part; None where one does not apply, or the fault is on another call."""
        if self.on is not None and number != self.on:
            return None
        if self.layers is not None and call.layer not in self.layers:
            return None
        for hypothesis, values in self.parts:
            changed = hypothesis.apply(call, scene, values)
            if changed is None:
                return None
            call = changed
        return call


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """A fault that was tried.

    Parameters
    ----------
    fault
        Which.
    residual, bar
        What it leaves of the error, and up to what that is an explanation.
    places, layers
        The calls that it changes, and the layers that they are in.
    """

    fault: Fault
    residual: float
    bar: float
    places: tuple[Place, ...] = ()
    layers: frozenset[int | None] = frozenset()

    @property
    def explains(self) -> bool:
        """Whether the fault gives the candidate's numbers."""
        return self.residual <= self.bar


def attempt(
    case: Case,
    scene: Scene,
    fault: Fault,
    *,
    part: Part | None = None,
    known: bool = False,
    budget: Budget | None = None,
) -> Attempt | None:
    """Try one fault; None where it does not apply.

    Parameters
    ----------
    case, scene, fault
        What to try, and where.
    part
        A part of a product to try it at first.
    known
        Whether it explains another site: NaN and infinities then need no numbers beside them.
    budget
        The time; None for no end.

    Raises
    ------
    OutOfTime
        Where the time is over.
    """
    if budget is not None:
        budget.check()
    if part is not None:
        changed = fault.change(0, case.call, scene)
        return None if changed is None else at_part(case, scene, fault, changed, part)
    done = rerun(case, scene.arithmetic, lambda number, call: fault.change(number, call, scene), budget)
    if done is None:
        return None
    found = left(case, scene.arithmetic, done.call, done.given, known=known)
    return Attempt(fault, found, case.bar(scene.arithmetic, done.call), *places(case, done.changed))


def at_part(case: Case, scene: Scene, fault: Fault, changed: Call, part: Part | None) -> Attempt:
    """Try what a fault makes of the judged call, at a part of a product first."""
    bar = case.bar(scene.arithmetic, changed)
    if part is not None:
        found = part.residual(case, scene.arithmetic, changed)
        if not found <= LOOSE * bar:
            return Attempt(fault, found, bar)
    return Attempt(fault, left(case, scene.arithmetic, changed), bar, *places(case, [len(case.segment)]))


def places(case: Case, numbers: Iterable[int]) -> tuple[tuple[Place, ...], frozenset[int | None]]:
    """Where some calls of a case stand in the run, and the layers that they are in."""
    calls = [case.calls[n] for n in numbers]
    return tuple((call.step, call.order) for call in calls), frozenset(call.layer for call in calls)


def nearly_explains(case: Case, tried: Attempt) -> bool:
    """Whether a single fault leaves little over the floor of a far larger error."""
    return len(tried.fault.parts) == 1 and tried.residual <= min(LITTLE * case.floor, case.error / FAR)


def explaining(case: Case, tried: Iterable[Attempt]) -> list[Attempt]:
    """The attempts that explain the case, the first to be named first.

    Fewer parts come first, then less left, then what needs no fitted number, then the table's order. Where none does, a
    single fault that leaves little over the floor of a far larger error is what is wrong: no second one is needed.
    """
    tried = list(tried)
    good = [a for a in tried if a.explains]
    if not good:
        nearly = [a for a in tried if nearly_explains(case, a)]
        return [min(nearly, key=lambda a: a.residual)] if nearly else []
    fewest = min(len(a.fault.parts) for a in good)
    good = [a for a in good if len(a.fault.parts) == fewest]
    level = max(ALIKE * min(a.residual for a in good), case.noise)
    return sorted(good, key=lambda a: (a.residual > level, a.residual if a.residual > level else 0.0, a.fault.fitted))
