"""Representative sites of a trace: those from which layouts and arithmetic are found."""

from __future__ import annotations

from collections.abc import Sequence

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.judging.arithmetic import HANDFUL, Fingerprint
from firstdiff.judging.arithmetic_evidence import LAYERS
from firstdiff.judging.arithmetic_phases import stand_ins
from firstdiff.judging.arithmetic_trials import CACHE_STEPS
from firstdiff.judging.floors import STORED
from firstdiff.judging.needed import Wanted
from firstdiff.verdict import SiteVerdict, Status


def handful(trace: Trace) -> frozenset[int] | None:
    """Layers that stand for all of a trace's layers, evenly spread; None where no handful of them does.

    They are as many as the search for an arithmetic asks for: the caches of two steps count twice. The first layer, of
    small activations, and the last one are the least like the others.
    """
    held: dict[int, set[str]] = {}
    for site in trace:
        if site.layer is not None and site.step == 0:
            held.setdefault(site.layer, set()).add(site.point)
    layers = sorted(held)
    many = LAYERS if len(trace.steps) > 1 else HANDFUL
    if len(layers) <= many:
        return None
    chosen = [layers[(2 * i + 1) * len(layers) // (2 * many)] for i in range(many)]
    points = set().union(*held.values())
    return frozenset(chosen) if all(held[layer] == points for layer in chosen) else None


def undecided(found: Fingerprint) -> frozenset[str]:
    """The groups of which a handful of layers says less than all do: those with a level, which is measured over all.

    How an engine adds and turns is no part of the arithmetic that it is judged in, and of the embedding there is one.
    """
    phases = (found, *(phase for _, phase in found.phases))
    groups = [of for phase in phases for of in phase.groups.items()]
    left = {group for group, e in groups if not (e.known or (e.fits and (not e.weak or group == "results")))}
    return frozenset(left | {group for phase in phases for group in phase.levels.groups}) - {"embedding"}


def narrow(trace: Trace) -> bool:
    """Whether most of a trace's sites were stored in fewer digits than float32 has."""
    narrow = [trace.dtype(site) in STORED for site in trace]
    return 2 * sum(narrow) > len(narrow)


def among(trace: Trace, layers: frozenset[int], groups: frozenset[str] = frozenset(), *, logits: bool = True) -> Wanted:
    """Sites that stand for all of a trace: of some layers, and outside the layers, of a step of each phase.

    Of some `groups` of operations all layers stand for themselves.
    """
    kernels = frozenset(stand_ins(trace.steps).values())

    def wanted(site: Site) -> bool:
        if site.layer is None:
            return site in trace and site.step == 0 and (logits or kind_of(site.point) is not Kind.LOGITS)
        cached = site.step < CACHE_STEPS and kind_of(site.point) is Kind.CACHE
        whole = site.layer in layers or not groups.isdisjoint(_GROUPS.get(kind_of(site.point), ("results",)))
        return whole and (site.step in kernels or cached)

    return wanted


_GROUPS: dict[Kind | None, tuple[str, ...]] = {
    Kind.PRODUCT: ("linear",), Kind.NORM: ("norm",), Kind.SCORES: ("attention",), Kind.ATTENTION: ("attention",),
    Kind.EMBEDDING: ("embedding",), Kind.CACHE: ("keys", "values"),
}  # fmt: skip
"""The groups that a point's operation may be of, by its kind."""


def misread(sites: Sequence[SiteVerdict], recorded: Sequence[Site]) -> bool:
    """Whether a point is none of the reference's, does not fit its shape, or is wrong at half of a step's layers."""
    if {site.point for site in recorded} - {site.point for site in sites}:
        return True
    if any(site.status is Status.NOT_COMPARABLE for site in sites):
        return True
    odd: dict[tuple[str, int], list[bool]] = {}
    for site in sites:
        if site.status is not Status.NOT_RECORDED:
            odd.setdefault((site.point, site.step), []).append(site.status is Status.DIVERGES)
    return any(2 * sum(values) >= len(values) for values in odd.values())
