"""The arithmetic of a dump that holds no product beside its inputs: found from whole segments.

A dump of each layer's output shows no operation by itself. But a layer that is computed as the engine does it gives the
engine's numbers, and any other way does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from firstdiff.dumps import Site, Trace
from firstdiff.judging.arithmetic import BY_NAME, STRONG, Fingerprint
from firstdiff.judging.arithmetic_options import BASES
from firstdiff.judging.arithmetic_phases import stand_ins
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.passes import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.judging.segment_levels import WHOLE
from firstdiff.model.arithmetic import GGML, arithmetic_named
from firstdiff.model.engine import Model
from firstdiff.model.errors import ModelError
from firstdiff.model.holding import ELEMENTS, KINDS
from firstdiff.verdict import SiteVerdict, Status

MOST = 4
"""Layers of a step that are looked at, evenly spread."""

FIRST = 2
"""Layers of the first step at which every arithmetic is tried, the few best then at all that are looked at."""

FEW = 3
"""How many these are."""

SHARE = 0.75
"""The share of these layers that an arithmetic must give: the others may be faulty."""

LESS = 0.7
"""The part of an error that the engine's own arithmetic leaves at most, where another was taken: storing and rounding
may be most of it."""

NEAR = 1 / 3
"""The part of its floor up to which a segment's error is what rounding makes of it, as a rule."""

NOTHING = 0.01
"""The part of an error that says nothing: the segment has none of the weights that are held otherwise, or a fault."""


@dataclass(frozen=True, slots=True)
class _Tried:
    """What an arithmetic leaves of the segments that are looked at."""

    name: str
    sites: Sequence[SiteVerdict]

    @property
    def error(self) -> float:
        """The error that half of the segments stay below."""
        return median(s.local_error or 0.0 for s in self.sites)

    @property
    def fits(self) -> bool:
        """Whether most segments are at their floor."""
        return self.beyond <= (1 - SHARE) * len(self.sites)

    @property
    def beyond(self) -> int:
        """How many segments are beyond their floor."""
        return sum((s.local_error or 0.0) > (s.floor or 0.0) for s in self.sites)

    def share_of(self, other: _Tried) -> float:
        """The part of another's error that it leaves at the segment that speaks most for it: others may be faulty."""
        of = {s.site: s.local_error or 0.0 for s in other.sites}
        return min(((s.local_error or 0.0) / of[s.site] for s in self.sites if of.get(s.site)), default=1.0)

    def leaves_less_than(self, other: _Tried) -> bool:
        """Whether it leaves less of most segments than another, of those where the two differ.

        What is not the engine's way adds to their errors.
        """
        of = {s.site: s.local_error or 0.0 for s in other.sites}
        pairs = [(s.local_error or 0.0, of[s.site]) for s in self.sites if s.site in of]
        differ = [(own, its) for own, its in pairs if abs(own - its) > NOTHING * its]
        if len(differ) == 1:  # the logits alone, where a fault is in each layer
            return all(own * STRONG * STRONG <= its for own, its in differ)
        return bool(differ) and sum(own <= LESS * its for own, its in differ) >= SHARE * len(differ)


def of_segments(
    model: Model, trace: Trace, found: Fingerprint, alignment: Alignment, sites: Sequence[SiteVerdict], *, stated: bool
) -> Fingerprint | None:
    """Find the arithmetic in which segments with products give the candidate's numbers.

    Parameters
    ----------
    model, trace, alignment
        The model's file, a trace made with it, and its layouts.
    found, sites
        The arithmetic that the trace was judged in, and the sites judged.
    stated
        Whether the trace states that arithmetic: then only what weights are held in is sought.

    Returns
    -------
    The arithmetic, or None where the one that was taken fits, where single products tell, or where none fits.
    """
    ops = {s.site: BY_NAME.get(s.op) for s in sites}
    if found.phases or any(ops[s.site] == "linear" and not s.segment and s.local_error is not None for s in sites):
        return None
    spans = [s for s in sites if s.segment and any(ops.get(x) == "linear" for x in (*s.segment, s.site))]
    segments = [s for s in spans if s.local_error is not None and s.local_error <= WHOLE]  # the others are faulty
    if not _are_off(segments):
        return None

    def tried(name: str, at: frozenset[Site]) -> _Tried | None:
        try:
            probe = Replay(arithmetic_named(name), trace, alignment)
            run_trace(model, trace, probe, at.__contains__)
        except ModelError:  # rows that are no whole groups of a kind
            return None
        judged = [s for s in probe.sites if s.site in at and s.local_error is not None]
        return _Tried(name, judged) if judged else None

    chosen = _spread(trace, [s.site for s in segments])
    if not chosen:  # those that could tell are of steps that others stand for
        return None
    plain = tried(found.arithmetic.name, chosen)
    names = _nearest(partial(tried, at=_first(chosen)), found.arithmetic.name, stated=stated)
    better = [of for name in names for variant in _variants(name) if (of := tried(variant, chosen)) is not None]
    best = min(better, key=lambda of: (of.beyond, of.error), default=None)
    if plain is None or best is None or not best.fits or not best.leaves_less_than(plain):
        return None
    if best.beyond and STRONG * best.error > plain.error:  # another one may fit all of them, and none be faulty
        return None
    return Fingerprint(arithmetic_named(best.name), instead=plain.name if stated else None)


def _are_off(segments: Sequence[SiteVerdict]) -> bool:
    """Whether a point's segments are off at half of a step's layers, by no more than an arithmetic can do.

    Where one is beyond its floor, those are off too that are near to theirs: floors of whole layers are wide.
    """
    of: dict[tuple[str, int], list[SiteVerdict]] = {}
    for s in segments:
        of.setdefault((s.point, s.site.step), []).append(s)
    wrong = [of for of in of.values() if any(s.status is Status.DIVERGES for s in of)]
    off = [of for of in wrong if 2 * sum((s.local_error or 0.0) > NEAR * (s.floor or 0.0) for s in of) >= len(of)]
    return any(median(s.local_error or 0.0 for s in sites) <= WHOLE for sites in off)


def _nearest(tried: Callable[[str], _Tried | None], plain: str, *, stated: bool) -> list[str]:
    """The few arithmetics that leave least: of products, of what weights are held in, of both."""
    at_first = tried(plain)
    if at_first is None:
        return []
    bases = () if stated else tuple(base for base in (GGML, *BASES) if base != plain)
    kinds = tuple(f"+{part}={kind}" for kind in KINDS for part in ("held", "matrices"))
    left: dict[str, float] = {}

    def is_it(name: str) -> bool:
        of = tried(name)
        left[name] = 1.0 if of is None else of.share_of(at_first)
        return of is not None and of.fits and left[name] <= 1 / (STRONG * STRONG)

    for name in (*bases, *(plain + kind for kind in kinds)):
        if is_it(name):
            return [name]
    kind = min(kinds, key=lambda kind: left[plain + kind])
    if left[plain + kind] <= LESS:
        for base in bases:
            is_it(base + kind)
    return sorted((name for name in left if left[name] <= LESS), key=lambda name: left[name])[:FEW]


def _variants(name: str) -> Iterator[str]:
    """An arithmetic, and the same with the last matrix held as those of the layers are, and the table of embeddings."""
    yield name
    base, of, kind = name.partition("+matrices=")
    if of:
        yield f"{name}+output={kind}"
        if kind in ELEMENTS:
            yield f"{name}+output={kind}+embedding={kind}"
            yield f"{base}+held={kind}"


def _spread(trace: Trace, sites: Sequence[Site]) -> frozenset[Site]:
    """Some layers' sites of each number of tokens, and those outside the layers."""
    chosen: set[Site] = set()
    for step in stand_ins(trace.steps).values():
        of = [site for site in sites if site.step == step]
        layers = sorted({site.layer for site in of if site.layer is not None})
        some = {layers[(2 * i + 1) * len(layers) // (2 * MOST)] for i in range(MOST)} if len(layers) > MOST else layers
        chosen |= {site for site in of if site.layer is None or site.layer in some}
    return frozenset(chosen)


def _first(chosen: frozenset[Site]) -> frozenset[Site]:
    """The sites of some layers of the first step; those outside the layers where there are no others."""
    first = min(site.step for site in chosen)
    layers = sorted({site.layer for site in chosen if site.step == first and site.layer is not None})
    some = {layers[len(layers) * i // FIRST] for i in range(FIRST)} if layers else {None}
    return frozenset(site for site in chosen if site.step == first and site.layer in some)
