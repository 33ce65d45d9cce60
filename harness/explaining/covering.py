"""Which faults explain the sites of a run: those that cover most of them, each with one set of parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from firstdiff.dumps import Site
from firstdiff.explaining.attempt import Attempt, Fault, Means, attempt, explaining, nearly_explains
from firstdiff.explaining.budget import OutOfTime
from firstdiff.explaining.describing.findings import findings
from firstdiff.explaining.search import Search, is_long, search
from firstdiff.judging.case import Case
from firstdiff.model.moves import MOVES
from firstdiff.model.probe import Call

SEARCHES = 4
"""Sites of one point at which all hypotheses are tried in vain before the rest are only held against what is known."""

SEGMENT_SEARCHES = 2
"""The same of a point behind others that were not recorded, where a search takes ten times as long; one of a long
segment."""

OTHERS = 2
"""Layers that nothing explains, by which one that a fault explains is an exception."""

PAIR_SEARCHES = 4
"""Sites of a run at which pairs are tried in vain: it is what takes most of the time where nothing explains."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A fault that explains a site, the case and the search that found it, and all sites that it explains."""

    fault: Fault
    case: Case
    tried: list[Attempt]
    at: dict[Site, Attempt] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class InVain:
    """A case that no hypothesis explains: what was tried, and what is found of the difference."""

    case: Case
    tried: list[Attempt]
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Sites that one fault explains.

    Parameters
    ----------
    first, tried
        The case that was searched, and what was tried there.
    faults
        What explains all sites, with the most that it leaves of any, the one to be named first first.
    at
        The first of the faults at each of the sites, in execution order.
    """

    first: Case
    tried: list[Attempt]
    faults: list[Attempt]
    at: dict[Site, Attempt]


@dataclass(eq=False)
class Covering:
    """Searches cases, and holds what is found against all others.

    Parameters
    ----------
    means
        What to go by.
    pairs
        At how many sites pairs may be sought in vain.
    only
        The one site to search; None for any.
    progress
        Called with what is being done.
    """

    means: Means
    pairs: int = PAIR_SEARCHES
    only: Site | None = None
    progress: Callable[[str], None] = lambda _: None
    known: list[Known] = field(default_factory=list, init=False)
    in_vain: dict[Site, InVain] = field(default_factory=dict, init=False)
    cut_short: set[Site] = field(default_factory=set, init=False)
    _cases: dict[Site, Case] = field(default_factory=dict, init=False)
    _searches: dict[str, int] = field(default_factory=dict, init=False)

    def together(self, cases: Sequence[Case]) -> None:
        """Explain cases that are at hand together, the quickest to search first."""
        for case in sorted(cases, key=lambda case: (case.site != self.only, _computing(case))):
            self._cases[case.site] = case
            self.take(case)
        self._cases.clear()

    def take(self, case: Case) -> None:
        """Explain a case by what explains others already, or else search it."""
        held = [self._holds(known, case) for known in self.known]
        if any(held):
            return
        if self.only not in (None, case.site):
            return
        searches = self._searches.get(case.site.point, 0)
        if searches >= _most(case):
            return
        if self.means.budget.over:
            self.cut_short.add(case.site)
            return
        self.progress(f"explaining {case.site}")
        pairs = not searches and self.pairs > 0
        if not self._searched(case, search(case, self.means.at(case), pairs=pairs)):
            self._searches[case.site.point] = searches + 1
            self.pairs -= pairs

    def _searched(self, case: Case, found: Search) -> bool:
        """Note what was found, hold it against the cases at hand, and say whether it explains the case."""
        good = explaining(case, found.tried)
        for a in good:
            known = Known(a.fault, case, found.tried, {case.site: a})
            self.known.append(known)
            for other in self._cases.values():
                if other is not case:
                    self._holds(known, other)
        if not found.complete:
            self.cut_short.add(case.site)
        elif not good:
            self.in_vain[case.site] = InVain(case, found.tried, findings(case, self.means.at(case).scene))
        return bool(good)

    def _holds(self, known: Known, case: Case) -> bool:
        """Whether a known fault explains a case too. Beyond its time it is asked where that is one operation only."""
        budget, scene = None if case.direct else self.means.budget, self.means.at(case).scene
        with self.means.failures.at(case.site, *known.fault.hypotheses), suppress(OutOfTime):
            for fault in _placed(case, known):
                tried = attempt(case, scene, fault, known=True, budget=budget)
                if tried is not None and (tried.explains or nearly_explains(case, tried)):
                    known.at[case.site] = tried
                    return True
        return False

    def groups(self, order: Mapping[Site, int], lengths: Sequence[int]) -> list[Group]:
        """The faults that explain most sites, each with those that no other has before it.

        Parameters
        ----------
        order
            Numbers the sites that diverge in execution order.
        lengths
            The tokens of each step.
        """
        explained = set().union(*(known.at for known in self.known))
        missed = {(s.point, s.layer) for s in order.keys() - explained}
        believed = [k for k in self.known if not _doubtful(k, lengths, missed) and not _alone(k, missed)]
        left = set().union(*(known.at for known in believed))
        groups = []
        while left:
            # Of equals the simplest, then the first that was found: a search gives the one to be named first first.
            best = max(believed, key=lambda known: (len(left & known.at.keys()), -len(known.fault.parts)))
            sites = sorted(left & best.at.keys(), key=order.__getitem__)
            groups.append(_group(best, sites, believed))
            left -= best.at.keys()
        return groups


def _group(best: Known, sites: Sequence[Site], among: Iterable[Known]) -> Group:
    parts = len(best.fault.parts)
    alike = [k for k in among if k is not best and len(k.fault.parts) == parts and k.at.keys() >= set(sites)]
    faults = [replace(k.at[sites[0]], residual=max(k.at[s].residual for s in sites)) for k in (best, *alike)]
    return Group(best.case, best.tried, faults, {site: best.at[site] for site in sites})


def _doubtful(known: Known, lengths: Sequence[int], missed: Collection[tuple[str, int | None]]) -> bool:
    """Whether a number was read off steps of one token only, and does not fit the prompt that is wrong there too.

    Any angle of a single token is that of some position.
    """
    numbers = any(isinstance(v, int | float) for v in known.fault.values.values())
    return (
        numbers and all(lengths[s.step] == 1 for s in known.at) and any((s.point, s.layer) in missed for s in known.at)
    )


def _alone(known: Known, missed: Collection[tuple[str, int | None]]) -> bool:
    """Whether a fault fits one point of one layer by chance: that of others is wrong too, and nothing fits it."""
    points, layers = {s.point for s in known.at}, {s.layer for s in known.at}
    others = {layer for point, layer in missed if point in points and layer not in layers}
    return len(layers) == len(points) == 1 and len(others) >= OTHERS


def _most(case: Case) -> int:
    """At how many sites like this one all hypotheses are tried in vain."""
    return SEARCHES if case.direct else 1 if is_long(case) else SEGMENT_SEARCHES


def _computing(case: Case) -> int:
    """How many calls of a case compute anything; for what can be wrong at one call only, one."""
    return sum(call.op not in MOVES for call in case.calls)


def _placed(case: Case, known: Known) -> Iterator[Fault]:
    """A known fault as it is; then on other calls of the case that it may be on.

    A segment may be longer elsewhere, where unrecorded caches of earlier steps go into it: the last call of the same
    point is meant, or else the one that is as far from the end. It may go through several layers, and the fault be at
    those only where it was found.
    """
    fault, segment = known.fault, case.segment
    yield fault
    layers = frozenset[int | None]().union(*(a.layers for a in known.at.values()))
    through = {call.layer for call in case.calls}
    if fault.on is None and layers & through and not through <= layers:
        yield replace(fault, layers=layers)
    computing = [n for n, call in enumerate(case.calls) if call.op not in MOVES]
    if len(computing) == 1 and (fault.on is not None or segment):
        yield replace(fault, on=computing[0] if segment else None)
    elif fault.on is not None:
        call = known.case.calls[fault.on]
        deep = _depth(known.case, call)
        there = [n for n, c in enumerate(case.calls) if c.point == call.point and _depth(case, c) == deep]
        on = there[-1] if there else fault.on + len(segment) - len(known.case.segment)
        if on >= 0 and on != fault.on:
            yield replace(fault, on=on)


def _depth(case: Case, call: Call) -> int | None:
    """How many layers before the judged one a call is; None where one of them is in no layer."""
    return None if case.site.layer is None or call.layer is None else case.site.layer - call.layer
