"""Collecting cases: the sites that diverge, each with all that is needed to run it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from firstdiff.dumps import Site, Trace
from firstdiff.hypotheses import Scene
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.case import Case
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.own_layout import OwnLayout, own_layout
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.model.outline import outline
from firstdiff.verdict import SiteVerdict

MEMORY = 1 << 30
"""Bytes that the cases at hand together may take: with all sites of SmolLM2 wrong after 500 tokens, all would take five
times that."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A trace, and all that it was judged with.

    Parameters
    ----------
    model, trace
        The model, and the trace made with it.
    found, alignment
        The arithmetic and the layouts that it was judged in.
    sites
        The sites judged.
    own
        How the candidate has what the reference computes, where its head dimensions stand in another order: hypotheses
        work on what the candidate has.
    """

    model: Model
    trace: Trace
    found: Fingerprint
    alignment: Alignment
    sites: tuple[SiteVerdict, ...]
    own: OwnLayout | None = None

    @classmethod
    def of(
        cls, model: Model, trace: Trace, found: Fingerprint, alignment: Alignment, sites: Iterable[SiteVerdict]
    ) -> Judged:
        """What was judged, with the candidate's own layout."""
        return cls(model, trace, found, alignment, tuple(sites), own_layout(model, alignment))

    @property
    def theirs(self) -> Model:
        """The model as the candidate has it."""
        return self.model if self.own is None else self.own.model


@dataclass(kw_only=True)
class Collecting(Replay):
    """Hands on the case of each site in `wanted` that diverges."""

    wanted: Collection[Site]
    take: Callable[[Case], None] = field(repr=False)

    def diverged(self, case: Case) -> None:
        """Hand the case on."""
        if case.site in self.wanted:
            self.take(case)


def collect(judged: Judged, wanted: Collection[Site], take: Callable[[Case], None]) -> None:
    """Hand on the case of each of the wanted sites, in execution order; only what they need is run."""
    if not wanted:
        return
    own = judged.own
    handed = take if own is None else lambda case: take(own.case(case))
    probe = Collecting.of(judged.found, judged.trace, judged.alignment, wanted=wanted, take=handed)
    steps = max(site.step for site in wanted) + 1
    run_trace(judged.model, judged.trace, probe, wanted.__contains__, steps=steps)


def surroundings(judged: Judged) -> Scene:
    """What surrounds any call of a run: every other recorded value, laid out as the calls are."""
    shapes: dict[Site, tuple[int, ...]] = {}
    ran: dict[Site, int] = {}
    for awaited in outline(judged.model, judged.trace.steps):
        call = awaited.call
        if call.point:
            site = Site(call.step, call.layer, call.point)
            shapes[site], ran[site] = awaited.shape, call.order

    def lookup(site: Site) -> Array | None:
        found = judged.alignment.shaped(judged.trace, site, shapes[site]) if site in shapes else None
        return found if found is None or judged.own is None else judged.own.there(site.point, found)

    return Scene(judged.theirs, judged.found.arithmetic, lookup, ran)


def at_hand(wanted: Iterable[SiteVerdict], trace: Trace, most: int = MEMORY) -> frozenset[Site]:
    """The sites whose cases are kept at hand together, so many bytes at most and one site at least.

    The first site of each point and step comes first, then the second, and so on: between them they show whether one
    fault covers points, layers and steps.
    """
    sizes: Mapping[Site, int] = {s.site: _size(s, trace) for s in wanted}
    seen: Counter[tuple[str, int]] = Counter()
    turns = {}
    for site in sizes:
        turns[site] = seen[site.point, site.step]
        seen[site.point, site.step] += 1
    kept: list[Site] = []
    left = most
    for site in sorted(turns, key=turns.__getitem__):
        left -= sizes[site]
        if left < 0 and kept:
            break
        kept.append(site)
    return frozenset(kept)


def _size(s: SiteVerdict, trace: Trace) -> int:
    """Bytes of a case, roughly: what was recorded, computed and fed, and what a segment has between, in float32."""
    return 4 * (4 + len(s.segment)) * (prod(trace.shape(s.site)) if s.site in trace else 0)
