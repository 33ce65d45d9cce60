"""The counter-check: a run replayed with the explanations' faults made in the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from firstdiff.dumps import Trace
from firstdiff.explaining.replay import Explaining, Place, replay, site_of
from firstdiff.explaining.search import Fault
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.engine import Model
from firstdiff.model.probe import Call
from firstdiff.model.value import Value
from firstdiff.verdict import CounterCheck, SiteVerdict, Status


@dataclass(kw_only=True)
class Repaired(Replay):
    """Replays with the faults made in the reference, at the sites where they are."""

    faults: Mapping[Place, Fault]
    explaining: Explaining
    _right: Call | None = field(default=None, init=False)

    def value(self, call: Call) -> Value:
        """Judge the call as the candidate seems to have made it."""
        self._right = call
        given = super().value(self._changed(call) or call)
        self.explaining._shapes[call.point, call.step] = given.shape  # noqa: SLF001 - of the same run
        return given

    def silent(self, call: Call) -> Value:
        """Compute the call as the candidate seems to have made it."""
        self._right = call
        return super().silent(self._changed(call) or call)

    def _computed(self, call: Call, arithmetic: Arithmetic) -> Array:
        """What the call gives; what the right one gives, where the wrong one cannot be computed."""
        right = self._right
        if right is None or call is right:
            return super()._computed(call, arithmetic)
        with self.explaining.failures.at(site_of(call), *self.faults[(call.step, call.order)].hypotheses):
            return super()._computed(call, arithmetic)
        return super()._computed(right, arithmetic)

    def floor(self, calls: Sequence[Call], *, own: float, inputs: float) -> float:
        """At least the floor of the right call: what is made of it may be an operation that floors do not know."""
        assert self._right is not None
        right = super().floor((*calls[:-1], self._right), own=own, inputs=inputs)
        return max(super().floor(calls, own=own, inputs=inputs), right)

    def _changed(self, call: Call) -> Call | None:
        """The call gone wrong, where it is to go wrong and can be computed."""
        fault = self.faults.get((call.step, call.order))
        if fault is not None:
            with self.explaining.failures.at(site_of(call), *fault.hypotheses):
                return self.explaining.as_changed(fault, -1 if fault.on is None else fault.on, call)
        return None


def counter_check(model: Model, trace: Trace, probe: Explaining, sites: Sequence[SiteVerdict]) -> CounterCheck | None:
    """Replay with what explains made in the reference; what the reference was not trusted at is not judged again."""
    faults = {place: fault for group in probe.groups for place, fault in group.changed.items()}
    if not faults:
        return None
    repaired = Repaired(
        probe.arithmetic,
        trace,
        probe.alignment,
        probe.levels,
        phases=probe.phases,
        faults=faults,
        explaining=probe,
    )
    replay(model, trace, repaired)
    untrusted = {s.site for s in sites if s.status is Status.NOT_COMPARABLE}
    left = tuple(s.site for s in repaired.sites if s.status is Status.DIVERGES and s.site not in untrusted)
    applied = tuple(dict.fromkeys(group.faults[0].fault.id for group in probe.groups))
    agreeing = sum(s.status in (Status.AGREES, Status.INHERITS) for s in repaired.sites)
    return CounterCheck(applied, left, agreeing + len(left))
