"""How small a fault a dump could have shown, where nothing diverges: computed from its own inputs and floors.

An operation is run on the candidate's inputs with one number changed. What that changes the judged tensor by must be
more than the site's floor, and more by the error that the candidate has there anyway, which may hide as much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import axes_of
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.chains import Chain, site_of
from firstdiff.judging.changes import CHANGES, Change, Place, element
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.judging.rows import along, both, counted
from firstdiff.judging.traced import Traced, Upstream
from firstdiff.model.engine import Model
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.model.value import Value
from firstdiff.verdict import Fault, Sensitivity, SiteVerdict, Smallest, Status

LONGEST = 24
"""Unrecorded operations before a judged one up to which a change among them is tried: a layer has some 20."""

RIGHT = (Status.AGREES, Status.INHERITS)


def places(change: Change, sites: Sequence[SiteVerdict], cut: Collection[Site] = ()) -> list[Place]:
    """Where a change is tried: at operations that were recorded with their inputs, or else at one that was not.

    Parameters
    ----------
    change
        Which.
    sites
        The sites judged, in execution order.
    cut
        Sites of which only some rows were recorded: what they are computed from may reach back to the first layer.
    """
    right = [s for s in sites if s.status in RIGHT and s.floor is not None and math.isfinite(s.floor)]
    own = [s for s in right if s.op == change.op.__name__]
    direct = _of_one_step([s for s in own if not s.segment and s.site not in cut])
    inside = [s for s in direct if s.layer is not None]
    outside = [Place(change, s.site, s) for s in direct if s.layer is None]
    if inside:
        chosen = [Place(change, s.site, s) for s in _chosen(change, inside)]
        return chosen if change.op is linear else chosen + outside  # that of the logits takes as long as many others
    ops = {s.site: s.op for s in sites}
    within = [Place(change, s.site, s) for s in own]
    within += [Place(change, x, s) for s in right for x in s.segment if ops.get(x) == change.op.__name__]
    near = sorted((p for p in within if len(p.judged.segment) <= LONGEST), key=lambda p: len(p.judged.segment))
    first = next((p for p in near if p.site.layer is not None), None)
    if first is None:
        return outside or near[:1]
    return [first] if change.op is linear else [first, *outside]


def _of_one_step(sites: Sequence[SiteVerdict]) -> list[SiteVerdict]:
    """Those of the step that has most of them, the prompt's if all have as many."""
    count = Counter(s.step for s in sites)
    step = min(count, key=lambda step: (-count[step], step), default=0)
    return [s for s in sites if s.step == step]


def _chosen(change: Change, inside: Sequence[SiteVerdict]) -> list[SiteVerdict]:
    """Those that are tried; products take long, so that three of one layer stand for all."""
    layers = sorted({s.layer for s in inside if s.layer is not None})
    if change.op is linear:
        return _spread([s for s in inside if s.layer == layers[len(layers) // 2]], 3)
    kept = _spread(layers, change.layers)
    return [s for s in inside if s.layer in kept]


def _spread(of: Sequence[Any], count: int) -> list[Any]:
    """So many of a sequence, the first and the last among them."""
    last = len(of) - 1
    return [of[i] for i in sorted({round(last * i / (count - 1)) for i in range(count)})]


@dataclass(kw_only=True)
class Sensing(Replay):
    """Tries changes at their places, while the values that these need are at hand."""

    wanted: Mapping[Site, Sequence[Place]]
    found: dict[Fault, list[Smallest]] = field(default_factory=dict, init=False)

    def value(self, call: Call) -> Value:
        """Judge the call, and try the changes that it shows."""
        given = super().value(call)
        site = site_of(call)
        if site in self.wanted and isinstance(given, Traced):
            rows, _ = Upstream.of(call).judged(given.rows)
            mask = None if rows is None else along(rows, axes_of(call.point, given.array.ndim))
            chain = Chain.of(call, both(counted(call.point, given.array, call), mask), rows, self.arithmetic)
            for place in self.wanted[site]:
                self._take(place, chain)
        return given

    def _take(self, place: Place, chain: Chain) -> None:
        share = chain.smallest(place)
        of = next(c for c in chain.calls if c.point and site_of(c) == place.site)
        at = element(of) if place.change.fault is Fault.WEIGHT else None
        smallest = Smallest(place.site, share, place.judged.site, at)
        self.found.setdefault(place.change.fault, []).append(smallest)


@np.errstate(all="ignore")
def sensitivity(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    sites: Sequence[SiteVerdict],
    cut: Collection[Site] = (),
) -> tuple[Sensitivity, ...]:
    """Say of each kind of fault how small it could be and still diverge, at one place of this dump.

    Parameters
    ----------
    model, trace, found, alignment
        As the trace was judged with: `found` is its arithmetic.
    sites
        The sites judged.
    cut
        Sites of which only some rows were recorded.

    Returns
    -------
    One for each kind of fault that the model's operations can have.
    """
    ops = {s.op for s in sites}
    of = {c.fault: places(c, sites, cut) for c in CHANGES if c.op.__name__ in ops}
    wanted: dict[Site, list[Place]] = {}
    for place in (p for tried in of.values() for p in tried):
        wanted.setdefault(place.judged.site, []).append(place)
    probe = Sensing.of(found, trace, alignment, wanted=wanted)
    if wanted:
        run_trace(model, trace, probe, wanted.__contains__, steps=max(site.step for site in wanted) + 1)
    return tuple(_told(fault, probe.found.get(fault, ())) for fault in of)


def _told(fault: Fault, tried: Iterable[Smallest]) -> Sensitivity:
    ranked = sorted(tried, key=lambda s: s.share)
    if not ranked:
        return Sensitivity(fault, None, None, 0)
    return Sensitivity(fault, ranked[0], ranked[-1] if len(ranked) > 1 else None, len(ranked))
