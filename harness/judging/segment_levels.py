"""Levels of segments: how far an engine's own rounding goes between recorded values, where nothing shows it by itself.

An operation whose inputs or result were not recorded tells nothing of the arithmetic it is computed in. Where a segment
is off by the same little at all layers, it is the engine's arithmetic that is not known, and no layer is accused of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from statistics import median

from firstdiff.dumps.points import Kind, kind_of
from firstdiff.judging.arithmetic import BY_NAME
from firstdiff.judging.arithmetic_evidence import ALIKE, CEILINGS, LAYERS, SHARE, STANDS_OUT
from firstdiff.judging.levels import Segment
from firstdiff.verdict import SiteVerdict

OTHER = 1e-2  # ceiling of an operation that no group has

WHOLE = 0.06
"""Ceiling of a whole segment: over a layer, weights in fp8 or products of bf16 make up to 5.2e-2 of the residual stream
(``make bench-trust``)."""


def segment_levels(sites: Sequence[SiteVerdict], *, stated: bool) -> dict[Segment, float]:
    """The level of each segment that is off alike at the layers of a step, or that nothing is known of.

    Parameters
    ----------
    sites
        The sites judged, at the floors of the arithmetic that was taken.
    stated
        Whether the trace states that arithmetic: it is known then.
    """
    levels, of = _levels(sites, stated=stated)
    return {segment: level for segment, level in levels.items() if any(_excused(s, level) for s in of[segment])}


def without_unknown(sites: Sequence[SiteVerdict], *, stated: bool) -> list[SiteVerdict]:
    """The sites without those of segments whose level would rise if something were wrong there."""
    levels, of = _levels(sites, stated=stated)
    unknown = {s.site for segment in levels for s in of[segment]}
    return [s for s in sites if s.site not in unknown]


def _levels(
    sites: Sequence[SiteVerdict], *, stated: bool
) -> tuple[dict[Segment, float], Mapping[Segment, Sequence[SiteVerdict]]]:
    """The level of each segment that has one, whether or not it makes a difference; and the sites of each."""
    ops = {s.site: s.op for s in sites}
    measured = {s.op for s in sites if stated or (not s.segment and s.local_error is not None)}
    of: dict[Segment, list[SiteVerdict]] = defaultdict(list)
    for s in sites:
        if s.segment and s.local_error is not None:
            of[s.step, (*(site.point for site in s.segment), s.point)].append(s)
    levels: dict[Segment, float] = {}
    few: dict[Segment, tuple[set[str], float]] = {}
    excused: dict[int, set[str]] = defaultdict(set)
    layers: dict[Segment, list[SiteVerdict]] = defaultdict(list)
    for segment, sites_of in of.items():
        layers[_within_a_layer(segment)] += sites_of
    for segment in of:
        alike = layers[_within_a_layer(segment)]
        spanned = {ops[site] for site in (*alike[0].segment, alike[0].site) if site in ops}
        ceiling = _ceiling(ops[site] for site in (*alike[0].segment, alike[0].site) if site in ops)
        if len(alike) < LAYERS:
            few[segment] = spanned, ceiling
            continue
        errors = [(s.local_error or 0.0, s.floor or 0.0) for s in alike]
        level = _level(errors, ceiling, known=spanned <= measured)
        if level is not None:
            levels[segment] = level
            excused[segment[0]] |= spanned
    for segment, (spanned, ceiling) in few.items():
        # What too few layers have is held to the ceiling, if other segments show that its operations are not known.
        if spanned & excused[segment[0]] or not spanned <= measured:
            levels[segment] = ceiling
    return levels, of


def _within_a_layer(segment: Segment) -> Segment:
    """A segment without the embedding that the first layer's begins with: it rounds as those of the other layers do."""
    step, points = segment
    return step, tuple(point for point in points if kind_of(point) is not Kind.EMBEDDING)


def _excused(s: SiteVerdict, level: float) -> bool:
    """Whether a level makes a difference to a site."""
    return (s.floor or 0.0) < (s.local_error or 0.0) <= level


def _level(errors: Sequence[tuple[float, float]], ceiling: float, *, known: bool) -> float | None:
    """A few times what a segment shows over the layers; None where that is no arithmetic's.

    Where the arithmetic of its operations is `known` from other sites, most layers must show more than that, and alike:
    the few that are far beyond the others are the faulty ones.
    """
    showing = sorted(error for error, floor in errors if error > floor)
    if not known:
        middle = max(median(error for error, _ in errors), median(floor for _, floor in errors))
        return min(ceiling, STANDS_OUT * middle)
    alike = showing[: ceil(SHARE * len(errors))]
    if len(showing) < SHARE * len(errors) or alike[-1] > min(ceiling, ALIKE * alike[0]):
        return None
    return min(ceiling, STANDS_OUT * median(alike))


def _ceiling(ops: Iterable[str]) -> float:
    """The most that unknown arithmetics of some operations can make together."""
    return min(WHOLE, sum(CEILINGS.get(BY_NAME.get(op, ""), OTHER) for op in ops))


def told(levels: Mapping[Segment, float]) -> tuple[str, ...]:
    """Say what was judged at a level of its own."""
    if not levels:
        return ()
    points = sorted({points[-1] for _, points in levels})
    says = (
        f"{', '.join(points)}: tensors before {'these' if len(points) > 1 else 'it'} were not recorded, and the dump "
        "does not show how your engine rounds there. An error as large as most layers have it counts as rounding "
        f"(at most {max(levels.values()):.2g})"
    )
    return (says,)
