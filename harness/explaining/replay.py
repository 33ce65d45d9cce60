"""The explaining replay: at every site that diverges the call is run again under each hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from firstdiff.dumps import Site, Trace
from firstdiff.explaining.describing.findings import findings
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.search import Attempt, Fault, attempt, attempts, explaining
from firstdiff.hypotheses import Hypothesis, Scene
from firstdiff.judging.case import Case
from firstdiff.judging.needed import run
from firstdiff.judging.own_layout import OwnLayout, own_layout
from firstdiff.judging.past import missing_past
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import MOVES
from firstdiff.model.probe import Call
from firstdiff.model.value import Value

SEARCHES = 4
"""Sites of one point at which all hypotheses are tried in vain before the rest are only held against what is known."""

PAIR_SEARCHES = 4
"""Sites of a run at which pairs are tried in vain: it is what takes most of the time where nothing explains."""

Segment = tuple[str, ...] | bool
"""The points of a segment, or only whether there is one."""

Place = tuple[int, int]
"""The step of a call and its number there."""

Unexplained = tuple[Case, list[Attempt] | None, tuple[str, ...]]
"""A case, what was tried, None for nothing, and what is found of the difference."""


@dataclass
class Group:
    """Sites that one fault explains, and the faults that explain all of them."""

    first: Case
    faults: list[Attempt]
    tried: list[Attempt]
    cases: list[tuple[Site, float, float]] = field(default_factory=list)  # site, error, floor
    changed: dict[Place, Fault] = field(default_factory=dict)  # at which calls the first fault makes a change


@dataclass(kw_only=True)
class Explaining(Replay):
    """Explains the sites in `wanted`, as it replays the candidate once more.

    Hypotheses work on what the candidate has: where its head dimensions stand in another order, on its own rows, and
    `model` is the model as the candidate has it.
    """

    model: Model
    wanted: frozenset[Site]
    noise: Mapping[tuple[str, Segment], float]
    table: Mapping[str, Hypothesis]
    failures: Failures
    pairs: int = PAIR_SEARCHES
    groups: list[Group] = field(default_factory=list, init=False)
    unexplained: list[Unexplained] = field(default_factory=list, init=False)
    progress: Callable[[str], None] = lambda _: None
    own: OwnLayout | None = field(default=None, init=False)
    _shapes: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict, init=False)
    _ran: dict[Site, int] = field(default_factory=dict, init=False)
    _searches: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.own = own_layout(self.model, self.alignment)
        if self.own is not None:
            self.model = self.own.model

    @property
    def scene(self) -> Scene:
        """What surrounds the call at hand."""
        return Scene(self.model, self.arithmetic, self._lookup, self._ran)

    def value(self, call: Call) -> Value:
        """Judge the call, and explain it if it diverges."""
        given = super().value(call)
        self._shapes[call.point, call.step] = given.shape
        self._ran[Site(call.step, call.layer, call.point)] = call.order
        return given

    def diverged(self, case: Case) -> None:
        """Find out why: by what explains another site already, or by trying everything."""
        if case.site not in self.wanted:
            return
        if self.own is not None:
            case = self.own.case(case)
        segment = tuple(done.call.point for done in case.segment if done.call.point)
        noise = self.noise.get((case.site.point, segment), self.noise.get((case.site.point, bool(segment)), case.floor))
        case = replace(case, noise=min(noise, case.floor))
        if self._joins(case):
            return
        self.progress(f"explaining {case.site}")
        searches = self._searches.get(case.site.point, 0)
        if searches >= SEARCHES:
            self.unexplained.append((case, None, ()))
            return
        pairs = not searches and self.pairs > 0
        tried = attempts(case, self.scene, self.table, self.failures, pairs=pairs)
        good = explaining(case, tried)
        if good:
            group = Group(case, good, tried)
            self.groups.append(group)
            self._add(group, case, good[0].fault)
        else:
            self._searches[case.site.point] = searches + 1
            self.pairs -= pairs
            self.unexplained.append((case, tried, findings(case, self.scene)))

    def _joins(self, case: Case) -> bool:
        """Whether the faults of a group explain this site too; those that do not are dropped from the group."""
        for group in self.groups:
            kept: list[Attempt] = []
            here: list[Fault] = []
            for known in group.faults:
                with self.failures.at(case.site, *known.fault.hypotheses):
                    tried = next((a for a in self._again(case, known.fault) if a.explains), None)
                    if tried is not None:
                        kept.append(replace(known, residual=max(known.residual, tried.residual)))
                        here.append(tried.fault)
            if kept:
                group.faults = kept
                self._add(group, case, here[0])
                return True
        return False

    def _again(self, case: Case, fault: Fault) -> Iterator[Attempt]:
        """Try a known fault as it is; then on the judged call, or the one that computes anything, by its number here.

        The segment before a site may be longer at another step, so that the same call has another number.
        """
        placed = [fault]
        computing = [n for n, call in enumerate(case.calls) if call.op not in MOVES]
        if len(computing) == 1 and (fault.on is not None or case.segment):
            placed.append(replace(fault, on=computing[0] if case.segment else None))
        elif fault.on is not None and case.segment:
            placed.append(replace(fault, on=len(case.calls) - 1))
        for each in placed:
            tried = attempt(case, self.scene, each, known=True)
            if tried is not None:
                yield tried

    def _add(self, group: Group, case: Case, fault: Fault) -> None:
        group.cases.append((case.site, case.error, case.floor))
        for number, call in enumerate(case.calls):
            with self.failures.at(site_of(call), *fault.hypotheses):
                if fault.change(number, call, self.scene) is not None:
                    group.changed[(call.step, call.order)] = fault

    def _lookup(self, site: Site) -> Array | None:
        shape = self._shapes.get((site.point, site.step))
        found = None if shape is None else self.alignment.shaped(self.trace, site, shape)
        return found if found is None or self.own is None else self.own.there(site.point, found)

    def as_changed(self, fault: Fault, number: int, call: Call) -> Call | None:
        """One of the reference's calls with a fault made in it as the candidate makes it; None where none is."""
        if self.own is None or not call.point:
            return fault.change(number, call, self.scene)
        changed = fault.change(number, self.own.own(call), self.scene)
        return None if changed is None else self.own.laid_back(changed)


def site_of(call: Call) -> Site:
    """Where a call stands; a silent one under the name of its operation."""
    return Site(call.step, call.layer, call.point or call.op.__name__)


def replay(model: Model, trace: Trace, probe: Replay) -> None:
    """Replay all steps of a trace with a probe."""
    run(model, trace.steps, probe, past=missing_past(model, trace))
