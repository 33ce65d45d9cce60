"""Explanations in words: the records of a verdict, made of what was found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from firstdiff.dumps import Site
from firstdiff.dumps.points import Kind, of_kind
from firstdiff.explaining.attempt import Attempt
from firstdiff.explaining.collecting import Judged
from firstdiff.explaining.conditions import Conditions
from firstdiff.explaining.covering import Covering, Group, InVain
from firstdiff.explaining.search import is_long
from firstdiff.explaining.telling_apart import separating
from firstdiff.judging.case import Case
from firstdiff.model.engine import Model
from firstdiff.verdict import Explanation, SiteVerdict, Tried
from firstdiff.verdict.ranges import enumerated, extent

SURELY = 10.0
"""What leaves more than this part of the error may be right by chance."""

NEAR = 2.0
"""A hypothesis is the nearest only where it leaves less of the error than one over this: what leaves more is as far off
as what it is compared with."""

LONGER = 600  # seconds that are advised where the default is not enough

SHOWN = 12  # hypotheses with their residuals that an explanation lists


@dataclass(frozen=True, slots=True, eq=False)
class Telling:
    """Makes the records of a verdict.

    Parameters
    ----------
    judged
        The trace.
    covering
        What was found of it.
    wanted
        The sites that diverge, in execution order.
    conditions
        What is known of every call.
    """

    judged: Judged
    covering: Covering
    wanted: Mapping[Site, SiteVerdict]
    conditions: Conditions

    @property
    def model(self) -> Model:
        """The model that was run."""
        return self.judged.theirs

    def explained(self, group: Group, hidden: Sequence[Site]) -> Explanation:
        """The record of sites that one fault explains; at `hidden`, sites of the same points, it could not show."""
        first, *others = group.faults
        known = {a.fault.id for a in group.faults}
        sites = list(group.at)
        error = self._error(sites)
        alone = [
            f"{a.fault.id} ({a.fault.says(self.model)})"
            for a in group.tried
            if a.explains and a.fault.id not in known and len(a.fault.parts) == len(first.fault.parts)
        ]
        rest = [a for a in group.tried if a.fault.id not in known and not a.explains]
        return Explanation(
            site=sites[0],
            sites=tuple(sites),
            extent=self._extent(sites),
            hypothesis=first.fault.id,
            says=first.fault.says(self.model),
            fix=first.fault.fix(self.model),
            attributes=first.fault.values,
            error=error,
            residual=first.residual,
            floor=self._floor(sites),
            next_best=self._nearest(rest, group.first),
            equals=tuple(map(self._told, others)),
            separate=self._separate(group) if others else None,
            note=self._note(group, error, alone, hidden),
            tried=self._tried(group.tried),
            searched=_other(group.first.site, sites[0]),
            when=self.conditions.told(sites, self.wanted),
            measured=first.fault.measured,
            inside=self._inside(group),
        )

    def _inside(self, group: Group) -> str | None:
        """Where in the segment of the searched site the fault is; None where it is in the site's own operation."""
        case, tried = group.first, group.at.get(group.first.site)
        if tried is None or not case.segment:
            return None
        calls = {(call.step, call.order): call for call in case.calls}
        changed = [calls[place] for place in tried.places if place in calls]
        sites = [Site(call.step, call.layer, call.point) for call in changed if call.point]
        return self._extent(sites) if sites and sites != [case.site] else None

    def _separate(self, group: Group) -> str | None:
        """What would tell the group's faults apart; None where one of them cannot be run for it."""
        faults, means = [a.fault for a in group.faults], self.covering.means
        with means.failures.at(group.first.site, *(h for fault in faults for h in fault.hypotheses)):
            return separating(faults, group.first, means.scene, self.judged.trace)
        return None

    def _note(self, group: Group, error: float, alone: Sequence[str], hidden: Sequence[Site]) -> str | None:
        """How sure a fault is, what fits the site searched only, where it hides, and why it may change no score."""
        first, searched, sites = group.faults[0], group.first.site, list(group.at)
        notes = weak(first.residual, error)
        if hidden:
            notes.append(f"it could not show at {self._extent(hidden)}, where it changes less than rounding does")
        if alone:
            notes.append(
                f"at {searched} only, {enumerated(alone)} would fit as well, but not the same at all of these sites"
            )
        if searched in self.covering.cut_short:
            notes.append(f"the search of {searched} ended with its time, before all hypotheses were tried")
        turning = of_kind(Kind.ROTATION)
        first_turned, *turned = [{(s.layer, s.step) for s in sites if s.point == point} for point in turning]
        both = all(where == first_turned for where in turned)
        if both and {s.step for s in sites} == set(range(len(self.judged.trace.steps))):
            notes += [h.harmless for h in first.fault.hypotheses if len(first.fault.parts) == 1 and h.harmless]
        return "; ".join(notes) or None

    def not_explained(self, explained: Collection[Site]) -> Iterator[Explanation]:
        """One record per point of what nothing explains, and one of what was not searched."""
        points: dict[tuple[str, bool], list[Site]] = {}
        for site in self.wanted:
            if site not in explained:
                points.setdefault((site.point, self._not_searched(site)), []).append(site)
        for (_, not_searched), sites in points.items():
            yield self._cut_short(sites) if not_searched else self._in_vain(sites)

    def _not_searched(self, site: Site) -> bool:
        """Whether nothing was tried in vain at a site, nor at another of its point."""
        if site in self.covering.cut_short:
            return True
        return not any(of.point == site.point for of in self.covering.in_vain)

    def _cut_short(self, sites: Sequence[Site]) -> Explanation:
        seconds, only = self.covering.means.budget.seconds, self.covering.only
        spared = only is not None and only not in sites
        return replace(
            self._unexplained(sites),
            says=f"not searched, because only {only} was" if spared else f"not searched within {seconds:g} s",
            fix=f"search longer with --budget {LONGER}, or one site only: firstdiff explain TRACE {sites[0]} "
            f"--budget {LONGER}",
            unsearched=tuple(sites),
        )

    def _in_vain(self, sites: Sequence[Site]) -> Explanation:
        searched = [found for site in sites if (found := self.covering.in_vain.get(site)) is not None]
        first = searched[0]
        count = len({a.fault.id for a in first.tried})
        says = f"not explained, because none of {count} hypotheses that apply gives these numbers"
        if len(searched) < len(sites):
            says += f" at {enumerated([str(of.case.site) for of in searched])}, where all were tried"
        if is_long(first.case):
            says += "; each was tried at all layers that were not recorded together, and not at one of them"
        return replace(
            self._unexplained(sites),
            says=says,
            next_best=self._nearest(first.tried, first.case),
            findings=_findings(searched, len(sites)),
            tried=self._tried(first.tried),
            searched=_other(first.case.site, sites[0]),
        )

    def _unexplained(self, sites: Sequence[Site]) -> Explanation:
        return Explanation(
            site=sites[0],
            sites=tuple(sites),
            extent=self._extent(sites),
            hypothesis=None,
            says="",
            fix="",
            attributes={},
            error=self._error(sites),
            residual=None,
            floor=self._floor(sites),
        )

    def _extent(self, sites: Sequence[Site]) -> str:
        steps = self.judged.trace.steps
        return extent(sites, self.model.hp.n_layer, len(steps), [len(step.tokens) for step in steps])

    def _error(self, sites: Sequence[Site]) -> float:
        return max(self.wanted[s].local_error or 0.0 for s in sites)

    def _floor(self, sites: Sequence[Site]) -> float:
        return max(self.wanted[s].floor or 0.0 for s in sites)

    def _nearest(self, tried: Sequence[Attempt], case: Case) -> Tried | None:
        """What leaves least of those that do not explain a case; None where it leaves half of the error or more."""
        best = min(tried, key=lambda a: a.residual, default=None)
        return self._told(best) if best is not None and best.residual < case.error / NEAR else None

    def _tried(self, tried: Sequence[Attempt]) -> tuple[Tried, ...]:
        return tuple(self._told(a) for a in sorted(tried, key=lambda a: a.residual)[:SHOWN])

    def _told(self, tried: Attempt) -> Tried:
        return Tried(tried.fault.id, tried.fault.says(self.model), tried.residual)


def _other(site: Site, first: Site) -> Site | None:
    return None if site == first else site


def weak(residual: float, error: float) -> list[str]:
    """Say that evidence is weak where much of an error is left."""
    if residual <= error / SURELY:
        return []
    return [f"the evidence is weak, because {residual / error:.0%} of the error is left: record more points between"]


def _findings(searched: Sequence[InVain], sites: int) -> tuple[str, ...]:
    """What is found at all sites as it is; what is found at the first only, with its name."""
    first, *others = searched
    if sites == 1:
        return first.findings
    alike = len(searched) == sites
    return tuple(
        finding if alike and all(finding in of.findings for of in others) else f"at {first.case.site}, {finding}"
        for finding in first.findings
    )
