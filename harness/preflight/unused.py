"""Tensors that the engine did not go on with: what follows them was computed from the right values.

An operation that goes wrong gives numbers that the next one takes. Where the next one took others, and these are what
the wrong tensor should hold, the engine is right and the dump is not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.layout_options import candidates
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.measure import relative
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.judging.rows import counted
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.model.outline import Awaited, outline, sources
from firstdiff.model.probe import Call
from firstdiff.model.value import Value
from firstdiff.preflight.stale import same
from firstdiff.verdict import DumpFinding, SiteVerdict, Status
from firstdiff.verdict.ranges import extent

ALIKE = 0.05  # relative difference of one tensor from itself, in the coarsest dtype and arithmetic

CLEARLY = 4.0  # times the floor at least, were what follows wrong before

RIGHT = (Status.AGREES, Status.INHERITS)


def unused(
    model: Model, trace: Trace, found: Fingerprint, alignment: Alignment, sites: Sequence[SiteVerdict]
) -> tuple[DumpFinding, ...]:
    """Find sites that diverge, and that nothing which follows was computed from.

    Parameters
    ----------
    model, trace, found, alignment
        As the trace was judged with: `found` is its arithmetic.
    sites
        The sites judged.
    """
    judged = {s.site: s for s in sites}
    if sum(s.status is Status.DIVERGES for s in sites) < 2:  # noqa: PLR2004 - the tensor, and what follows it
        return ()
    values = outline(model, trace.steps)
    following = _following(values, {*trace, *(s.site for s in sites if s.local_error is not None)})
    suspected = {
        site: next_
        for site, s in judged.items()
        if s.status is Status.DIVERGES
        and site in trace
        and (next_ := following.get(site))
        and all(judged[n].status is Status.DIVERGES for n in next_ if n in judged)
    }
    if not suspected:
        return ()
    view = trace.without(suspected.__contains__)
    probe = _Right.of(found, view, alignment, suspected=frozenset(suspected))
    run_trace(model, trace, probe, {*suspected, *chain(*suspected.values())}.__contains__)
    again = {s.site: s for s in probe.sites}
    wrong: set[Site] = set()
    for site, next_ in reversed(suspected.items()):
        # What follows may be one of the suspected: it is told by what follows it in turn.
        used_another = any(n in wrong or _mended(judged.get(n), again.get(n)) for n in next_)
        if used_another and not _is_misread(model, trace, site, probe.right[site]):
            wrong.add(site)
    return tuple(_findings(model, trace, [site for site in suspected if site in wrong], values))


@dataclass
class _Right(Replay):
    """Keeps what the suspected sites should hold."""

    suspected: frozenset[Site] = frozenset()
    right: dict[Site, Array] = field(default_factory=dict, init=False)

    def value(self, call: Call) -> Value:
        """Judge the call, and keep its value where that is wanted."""
        given = super().value(call)
        if (site := Site(call.step, call.layer, call.point)) in self.suspected:
            self.right[site] = given.array
        return given


def _is_misread(model: Model, trace: Trace, site: Site, right: Array) -> bool:
    """Whether a tensor is right in another layout than it was read in, or but for a factor that is taken out later."""
    for layout in candidates(site.point, model):
        found = None if layout.source else layout.read(trace[site], right.shape)
        if found is None or found.shape != right.shape:
            continue
        seen = counted(site.point, right)
        x, y = (np.where(seen, z, 0) if seen is not None else z for z in (found, right))
        if relative(x, y * (np.vdot(x, y) / np.vdot(y, y))) <= ALIKE:
            return True
    return False


def _mended(before: SiteVerdict | None, after: SiteVerdict | None) -> bool:
    """Whether a site that diverged is right without the tensors that are suspected."""
    if before is None or after is None or after.status not in RIGHT or after.floor is None:
        return False
    return (before.local_error or 0.0) > CLEARLY * after.floor


def _following(values: Sequence[Awaited], known: Collection[Site]) -> dict[Site, set[Site]]:
    """For each known site the known ones of its step that are computed from it, with nothing known between."""
    before: dict[Awaited, set[Site]] = {}
    following: dict[Site, set[Site]] = defaultdict(set)
    for value in values:
        call = value.call
        of: set[Site] = set().union(*(before.get(source, ()) for source in sources(call)))
        site = Site(call.step, call.layer, call.point) if call.point else None
        if site is None or site not in known:
            before[value] = of
            continue
        for source in of:
            if source.step == site.step:
                following[source].add(site)
        before[value] = {site}
    return following


def _findings(model: Model, trace: Trace, wrong: Sequence[Site], values: Sequence[Awaited]) -> Iterator[DumpFinding]:
    """One finding for all sites that hold the same kind of thing."""
    calls = {Site(v.call.step, v.call.layer, v.call.point): v for v in values if v.call.point}
    kinds: dict[str, list[Site]] = defaultdict(list)
    for site in wrong:
        kinds[_held(trace, site, calls[site])].append(site)
    for held, sites in kinds.items():
        where = extent(sites, model.hp.n_layer, len(trace.steps))
        says = f"{where}: your dump holds {held}, and what follows was computed from the right values"
        fix = "copy each tensor when it is computed, before its buffer is used again"
        yield DumpFinding("not-what-was-used", says, fix, tuple(sites))


def _held(trace: Trace, site: Site, value: Awaited) -> str:
    """What is held at a site instead."""
    for other in _inputs(value):
        if same(trace, site, other):
            return "the operation's input"
    others = (s for s in trace if s.point == site.point and s != site)
    copy = next((s for s in others if same(trace, site, s)), None)
    if copy is None:
        return "other numbers than the engine went on with"
    return f"the tensor of step {copy.step}" if copy.layer == site.layer else f"the tensor of layer {copy.layer}"


def _inputs(value: Awaited) -> Iterable[Site]:
    """The sites that a value is computed from."""
    calls = (source.call for source in sources(value.call))
    return [Site(c.step, c.layer, c.point) for c in calls if c.point]
