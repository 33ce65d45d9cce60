"""The counter-check: a run replayed with the explanations' faults made in the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from firstdiff.dumps import Site
from firstdiff.dumps.points import axes_of
from firstdiff.explaining.attempt import Fault, Place
from firstdiff.explaining.collecting import Judged
from firstdiff.explaining.covering import Group
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.measured.other_way import rounds
from firstdiff.hypotheses import Scene
from firstdiff.judging.measure import measure
from firstdiff.judging.own_layout import OwnLayout
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.judging.rows import counted
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.model.value import Value
from firstdiff.verdict import CounterCheck, Status


@dataclass(frozen=True, slots=True, eq=False)
class Elsewhere:
    """A fault at a site that agrees: `hidden` takes note of the site where the fault changes less than its floor."""

    fault: Fault
    floor: float
    hidden: list[Site]


@dataclass(kw_only=True)
class Repaired(Replay):
    """Replays with the faults made in the reference, at the sites where they are."""

    faults: Mapping[Place, Fault]
    bars: Mapping[Place, float]
    scene: Scene
    failures: Failures
    own: OwnLayout | None = None
    elsewhere: Mapping[Site, Sequence[Elsewhere]] = field(default_factory=dict)
    _right: Call | None = field(default=None, init=False)

    def value(self, call: Call) -> Value:
        """Judge the call as the candidate seems to have made it."""
        self._right = call
        for of in self.elsewhere.get(Site(call.step, call.layer, call.point), ()):
            self._look(of, call)
        return super().value(self._changed(call) or call)

    def silent(self, call: Call) -> Value:
        """Compute the call as the candidate seems to have made it."""
        self._right = call
        return super().silent(self._changed(call) or call)

    def computed(self, call: Call, arithmetic: Arithmetic) -> Array:
        """What the call gives; what the right one gives, where the wrong one cannot be computed."""
        right = self._right
        if right is None or call is right:
            return super().computed(call, arithmetic)
        with self.failures.at(_site_of(call), *self.faults[(call.step, call.order)].hypotheses):
            return super().computed(call, arithmetic)
        return super().computed(right, arithmetic)

    def floor(self, calls: Sequence[Call], *, own: float, inputs: float) -> float:
        """At least the floor of the right call: what is made of it may be an operation that floors do not know.

        And at least what was found to go the other way where the fault is that numbers are rounded.
        """
        assert self._right is not None
        right = super().floor((*calls[:-1], self._right), own=own, inputs=inputs)
        otherwise = self.bars.get((self._right.step, self._right.order), 0.0)
        return max(super().floor(calls, own=own, inputs=inputs), right, otherwise)

    def _look(self, of: Elsewhere, call: Call) -> None:
        """Note whether a fault that is made at other sites could not show at this one."""
        with self.failures.at(_site_of(call), *of.fault.hypotheses), np.errstate(all="ignore"):
            changed = self._made(of.fault, 0, call)
            if changed is None:
                return
            wrong, right = (each.compute(self.arithmetic) for each in (changed, call))
            if wrong.shape != right.shape:
                return
            axes, seen = axes_of(call.point, right.ndim), counted(call.point, right, call)
            if measure(wrong, right, axes=axes, floor=of.floor, seen=seen).error <= of.floor:
                of.hidden.append(_site_of(call))

    def _changed(self, call: Call) -> Call | None:
        """The call gone wrong, where it is to go wrong and can be computed."""
        fault = self.faults.get((call.step, call.order))
        if fault is not None:
            with self.failures.at(_site_of(call), *fault.hypotheses):
                return self._made(fault, -1 if fault.on is None else fault.on, call)
        return None

    def _made(self, fault: Fault, number: int, call: Call) -> Call | None:
        """The call with a fault made in it as the candidate makes it; None where none is."""
        scene = replace(self.scene, arithmetic=self.arithmetic)
        if self.own is None or not call.point:
            return fault.change(number, call, scene)
        changed = fault.change(number, self.own.own(call), scene)
        return None if changed is None else self.own.laid_back(changed)


def counter_check(
    judged: Judged, scene: Scene, groups: Sequence[Group], failures: Failures
) -> tuple[CounterCheck | None, list[list[Site]]]:
    """Replay with what explains made in the reference; what the reference was not trusted at is not judged again.

    Returns
    -------
    What is left; None where nothing explains. Then, for each group, the sites of its points that agree, and would with
    its fault: it could not show there.
    """
    hidden: list[list[Site]] = [[] for _ in groups]
    made = {place: a for group in groups for a in group.at.values() for place in a.places}
    faults = {place: a.fault for place, a in made.items()}
    if not faults:
        return None, hidden
    repaired = Repaired.of(
        judged.found,
        judged.trace,
        judged.alignment,
        faults=faults,
        bars={place: a.bar for place, a in made.items() if rounds(a.fault)},
        scene=scene,
        failures=failures,
        own=judged.own,
        elsewhere=_elsewhere(judged, groups, hidden),
    )
    run_trace(judged.model, judged.trace, repaired)
    untrusted = {s.site for s in judged.sites if s.status is Status.NOT_COMPARABLE}
    left = tuple(s.site for s in repaired.settled() if s.status is Status.DIVERGES and s.site not in untrusted)
    applied = tuple(dict.fromkeys(group.faults[0].fault.id for group in groups))
    agreeing = sum(s.status in (Status.AGREES, Status.INHERITS) for s in repaired.sites)
    return CounterCheck(applied, left, agreeing + len(left)), hidden


def _elsewhere(judged: Judged, groups: Sequence[Group], hidden: Sequence[list[Site]]) -> dict[Site, list[Elsewhere]]:
    """Where else each fault might be: at the sites of its points that agree.

    Not for products: their weights would be read once more, and rounding hides few of their faults.
    """
    found: dict[Site, list[Elsewhere]] = {}
    for group, noted in zip(groups, hidden, strict=True):
        if group.first.segment or group.first.call.op is linear:
            continue
        points, fault = {site.point for site in group.at}, group.faults[0].fault
        for s in judged.sites:
            if s.point in points and not s.segment and s.status in (Status.AGREES, Status.INHERITS):
                found.setdefault(s.site, []).append(Elsewhere(fault, s.floor or 0.0, noted))
    return found


def _site_of(call: Call) -> Site:
    """Where a call stands; a silent one under the name of its operation."""
    return Site(call.step, call.layer, call.point or call.op.__name__)
