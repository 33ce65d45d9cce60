"""The explaining replay: at every site that diverges the call is run again under each hypothesis.

The same fault at many sites is one explanation: what explains an earlier site is tried first at a later one, and of
several that explain as well, those are kept that hold at every site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from firstdiff.align import Alignment
from firstdiff.cases import Case
from firstdiff.describing import findings
from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, of_kind
from firstdiff.explain import Attempt, Failures, Fault, attempt, attempts, explaining
from firstdiff.extent import enumerated, extent
from firstdiff.fingerprint import Fingerprint
from firstdiff.hypotheses import TABLE, Hypothesis, Scene
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.engine import Model
from firstdiff.model.probe import Call
from firstdiff.model.value import Value
from firstdiff.replay import Replay
from firstdiff.separating import separating
from firstdiff.verdict import CounterCheck, Explanation, SiteVerdict, Status, Tried

SEARCHES = 4
"""Sites of one point at which all hypotheses are tried in vain before the rest are only held against what is known."""

PAIR_SEARCHES = 4
"""Sites of a run at which pairs are tried in vain: it is what takes most of the time where nothing explains."""

Segment = tuple[str, ...] | bool
"""The points of a segment, or only whether there is one."""

SURELY = 10.0
"""What leaves more than this part of the error may be right by chance."""

SHOWN = 12  # hypotheses with their residuals that an explanation lists


Place = tuple[int, int]
"""The step of a call and its number there."""

_Unexplained = tuple[Case, list[Attempt] | None, tuple[str, ...]]
"""A case, what was tried, None for nothing, and what is found of the difference."""


@dataclass
class _Group:
    """Sites that one fault explains, and the faults that explain all of them."""

    first: Case
    faults: list[Attempt]
    tried: list[Attempt]
    cases: list[tuple[Site, float, float]] = field(default_factory=list)  # site, error, floor
    changed: dict[Place, Fault] = field(default_factory=dict)  # at which calls the first fault makes a change


@dataclass(kw_only=True)
class Explaining(Replay):
    """Explains the sites in `wanted`, as it replays the candidate once more."""

    model: Model
    wanted: frozenset[str]
    noise: Mapping[tuple[str, Segment], float]
    table: Mapping[str, Hypothesis]
    failures: Failures
    pairs: int = PAIR_SEARCHES
    groups: list[_Group] = field(default_factory=list, init=False)
    unexplained: list[_Unexplained] = field(default_factory=list, init=False)
    progress: Callable[[str], None] = lambda _: None
    _shapes: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict, init=False)
    _searches: dict[str, int] = field(default_factory=dict, init=False)

    @property
    def scene(self) -> Scene:
        """What surrounds the call at hand."""
        return Scene(self.model, self.arithmetic, self._lookup)

    def value(self, call: Call) -> Value:
        """Judge the call, and explain it if it diverges."""
        given = super().value(call)
        self._shapes[call.point, call.step] = given.shape
        return given

    def diverged(self, case: Case) -> None:
        """Find out why: by what explains another site already, or by trying everything."""
        if str(case.site) not in self.wanted:
            return
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
            group = _Group(case, good, tried)
            self.groups.append(group)
            self._add(group, case)
        else:
            self._searches[case.site.point] = searches + 1
            self.pairs -= pairs
            self.unexplained.append((case, tried, findings(case, self.scene)))

    def _joins(self, case: Case) -> bool:
        """Whether the faults of a group explain this site too; those that do not are dropped from the group."""
        for group in self.groups:
            kept = []
            for known in group.faults:
                with self.failures.at(case.site, *known.fault.hypotheses):
                    tried = attempt(case, self.scene, known.fault, known=True)
                    if tried is not None and tried.explains:
                        kept.append(replace(known, residual=max(known.residual, tried.residual)))
            if kept:
                group.faults = kept
                self._add(group, case)
                return True
        return False

    def _add(self, group: _Group, case: Case) -> None:
        group.cases.append((case.site, case.error, case.floor))
        fault = group.faults[0].fault
        for number, call in enumerate(case.calls):
            with self.failures.at(site_of(call), *fault.hypotheses):
                if fault.change(number, call, self.scene) is not None:
                    group.changed[(call.step, call.order)] = fault

    def _lookup(self, site: Site) -> Array | None:
        shape = self._shapes.get((site.point, site.step))
        return None if shape is None else self.alignment.shaped(self.trace, site, shape)


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
                return fault.change(-1 if fault.on is None else fault.on, call, self.explaining.scene)
        return None


def site_of(call: Call) -> Site:
    """Where a call stands; a silent one under the name of its operation."""
    return Site(call.step, call.layer, call.point or call.op.__name__)


@np.errstate(all="ignore")  # hypotheses run on a candidate's NaN and infinities too
def explain(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    sites: Sequence[SiteVerdict],
    *,
    failures: Failures,
    table: Mapping[str, Hypothesis] = TABLE,
    pairs: int = PAIR_SEARCHES,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[tuple[Explanation, ...], CounterCheck | None]:
    """Explain every site of a judged trace that diverges.

    Parameters
    ----------
    model, trace, found, alignment
        As the trace was judged with: `found` is its arithmetic.
    sites
        The sites judged.
    failures
        Notes the hypotheses that cannot be tried.
    table
        The hypotheses to try.
    pairs
        At how many sites pairs may be sought in vain.
    progress
        Called with what is being done.

    Returns
    -------
    The explanations in execution order, and the counter-check: the run replayed with all of them applied.
    """
    wanted = frozenset(s.site for s in sites if s.status is Status.DIVERGES)
    if not wanted:
        return (), None
    probe = Explaining(
        found.arithmetic,
        trace,
        alignment,
        found.levels,
        model=model,
        wanted=wanted,
        noise=_noise(sites),
        table=table,
        failures=failures,
        pairs=pairs,
        progress=progress,
    )
    _run(model, trace, probe)
    made = [_explained(group, probe, trace) for group in probe.groups]
    made += list(_not_explained(probe.unexplained, model, trace))
    order = {s.site: number for number, s in enumerate(sites)}
    made.sort(key=lambda e: order[e.site])
    return tuple(made), _counter_check(model, trace, probe, sites)


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
    excused: dict[str, list[str]] = {}
    for s in sites:
        beyond = s.tight is not None and s.local_error is not None and s.tight < s.local_error
        if beyond and not s.segment and s.layer is not None:  # a fault of the logits alone is no arithmetic's
            excused.setdefault(s.point, []).append(s.site)
    wanted = frozenset(site for of in excused.values() for site in (of[0], of[len(of) // 2]))
    if not wanted:
        return False
    faults = {id_: h for id_, h in table.items() if id_ != "other-arithmetic"}
    probe = Explaining(
        found.arithmetic,
        trace,
        alignment,
        model=model,
        wanted=wanted,
        noise={},
        table=faults,
        failures=failures,
        pairs=0,
    )
    _run(model, trace, probe)
    return any(len(group.cases) > 1 for group in probe.groups)


def _run(model: Model, trace: Trace, probe: Replay) -> None:
    for _ in model.forward(trace.steps, probe):
        pass


def _noise(sites: Sequence[SiteVerdict]) -> dict[tuple[str, Segment], float]:
    """What each point's error is where it is right, over the same segment or any; elsewhere its floor is all there is.

    Keys are a point with the segment's points, and a point with whether there was a segment.
    """
    seen: dict[tuple[str, Segment], list[float]] = {}
    for s in sites:
        if s.status in (Status.AGREES, Status.INHERITS) and s.local_error is not None:
            segment = tuple(Site.parse(of).point for of in s.segment)
            for key in (segment, bool(segment)):
                seen.setdefault((s.point, key), []).append(s.local_error)
    # Codes of a segment's rounded activations flip at some sites and not at others: the largest error counts.
    return {key: max(errors) if key[1] else median(errors) for key, errors in seen.items()}


def _counter_check(model: Model, trace: Trace, probe: Explaining, sites: Sequence[SiteVerdict]) -> CounterCheck | None:
    """Replay with what explains made in the reference; what the reference was not trusted at is not judged again."""
    faults = {place: fault for group in probe.groups for place, fault in group.changed.items()}
    if not faults:
        return None
    repaired = Repaired(probe.arithmetic, trace, probe.alignment, probe.levels, faults=faults, explaining=probe)
    _run(model, trace, repaired)
    untrusted = {s.site for s in sites if s.status is Status.NOT_COMPARABLE}
    left = tuple(s.site for s in repaired.sites if s.status is Status.DIVERGES and s.site not in untrusted)
    applied = tuple(dict.fromkeys(group.faults[0].fault.id for group in probe.groups))
    agreeing = sum(s.status in (Status.AGREES, Status.INHERITS) for s in repaired.sites)
    return CounterCheck(applied, left, agreeing + len(left))


def _explained(group: _Group, probe: Explaining, trace: Trace) -> Explanation:
    first, *others = group.faults
    known = {a.fault.id for a in group.faults}
    sites = [site for site, _, _ in group.cases]
    error = max(error for _, error, _ in group.cases)
    alone = [
        f"{a.fault.id} ({a.fault.says})"
        for a in group.tried
        if a.explains and a.fault.id not in known and len(a.fault.parts) == len(first.fault.parts)
    ]
    rest = sorted((a for a in group.tried if a.fault.id not in known and not a.explains), key=lambda a: a.residual)
    return Explanation(
        site=str(sites[0]),
        sites=tuple(map(str, sites)),
        extent=extent(sites, probe.model.hp.n_layer, len(trace.steps)),
        hypothesis=first.fault.id,
        says=first.fault.says,
        fix=first.fault.fix,
        attributes=first.fault.values,
        error=error,
        residual=first.residual,
        floor=max(floor for _, _, floor in group.cases),
        next_best=_told(rest[0]) if rest else None,
        equals=tuple(map(_told, others)),
        separate=_separate(group, probe, trace) if others else None,
        note=_note(first, error, sites, alone, trace),
        tried=tuple(_told(a) for a in sorted(group.tried, key=lambda a: a.residual)[:SHOWN]),
    )


def _separate(group: _Group, probe: Explaining, trace: Trace) -> str | None:
    """What would tell the group's faults apart; None where one of them cannot be run for it."""
    faults = [a.fault for a in group.faults]
    with probe.failures.at(group.first.site, *(h for fault in faults for h in fault.hypotheses)):
        return separating(faults, group.first, probe.scene, trace)
    return None


def _note(first: Attempt, error: float, sites: Sequence[Site], alone: Sequence[str], trace: Trace) -> str | None:
    """How sure a fault is, what fits the first site `alone` as well, and what it is not.

    The same offset of every position leaves all scores as they are.
    """
    notes = []
    if first.residual > error / SURELY:
        notes.append("the evidence is weak, because much of the difference is left; record more points between")
    if alone:
        notes.append(
            f"at {sites[0]} alone {enumerated(alone)} would fit as well, but not the same at all of these sites"
        )
    first_turned, *turned = [{(s.layer, s.step) for s in sites if s.point == point} for point in of_kind(Kind.ROTATION)]
    both = all(where == first_turned for where in turned)
    if first.fault.id == "rope-offset" and both and {s.step for s in sites} == set(range(len(trace.steps))):
        notes.append("scores depend on differences of positions alone: the same offset on Q and K changes none of them")
    return "; ".join(notes) or None


def _told(tried: Attempt) -> Tried:
    return Tried(tried.fault.id, tried.fault.says, tried.residual)


def _not_explained(unexplained: Sequence[_Unexplained], model: Model, trace: Trace) -> Iterator[Explanation]:
    """One record a point."""
    points = dict.fromkeys(case.site.point for case, _, _ in unexplained)
    for point in points:
        cases = [entry for entry in unexplained if entry[0].site.point == point]
        case, first, _ = cases[0]
        tried = first or []
        ranked = sorted(tried, key=lambda a: a.residual)
        sites = [c.site for c, _, _ in cases]
        searched = [(c.site, findings) for c, of, findings in cases if of is not None]
        count = len({a.fault.id for a in tried})
        says = f"not explained, because none of {count} hypotheses that apply gives these numbers"
        if len(searched) < len(sites):
            says += f" at {enumerated([str(site) for site, _ in searched])}, where all were tried"
        yield Explanation(
            site=str(case.site),
            sites=tuple(map(str, sites)),
            extent=extent(sites, model.hp.n_layer, len(trace.steps)),
            hypothesis=None,
            says=says,
            fix="",
            attributes={},
            error=max(c.error for c, _, _ in cases),
            residual=None,
            floor=max(c.floor for c, _, _ in cases),
            next_best=_told(ranked[0]) if ranked else None,
            findings=_findings(searched, len(sites)),
            tried=tuple(map(_told, ranked[:SHOWN])),
        )


def _findings(searched: Sequence[tuple[Site, tuple[str, ...]]], sites: int) -> tuple[str, ...]:
    """What is found at all sites as it is; what is found at the first alone with its name."""
    (first, findings), *others = searched
    if sites == 1:
        return findings
    alike = len(searched) == sites
    return tuple(
        finding if alike and all(finding in of for _, of in others) else f"at {first}, {finding}"
        for finding in findings
    )
