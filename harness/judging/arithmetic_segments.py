"""The arithmetic of a dump that holds no product beside its inputs: found from whole segments.

A dump of each layer's output shows no operation by itself. But a layer that is computed as the engine does it gives the
engine's numbers, and any other way does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from firstdiff.dumps import Site, Trace
from firstdiff.judging.arithmetic import BY_NAME, STRONG, Fingerprint
from firstdiff.judging.arithmetic_options import BASES
from firstdiff.judging.arithmetic_phases import stand_ins
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.needed import run_trace
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import GGML, arithmetic_named
from firstdiff.model.engine import Model
from firstdiff.model.errors import ModelError
from firstdiff.model.holding import ELEMENTS, KINDS
from firstdiff.verdict import SiteVerdict, Status

MOST = 4
"""Layers of a step that are looked at, evenly spread."""

SHARE = 0.75
"""The share of these that an arithmetic must give: the others may be faulty."""


LESS = 0.7
"""The part of an error that the engine's own arithmetic leaves at most, where another was taken: storing and rounding
may be most of it."""


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
    def floor(self) -> float:
        """The floor that half of the segments have."""
        return median(s.floor or 0.0 for s in self.sites)

    @property
    def fits(self) -> bool:
        """Whether most segments are at their floor."""
        return sum((s.local_error or 0.0) <= (s.floor or 0.0) for s in self.sites) >= SHARE * len(self.sites)

    def leaves_less_than(self, other: _Tried) -> bool:
        """Whether it leaves less of most segments than another, of those where the two differ.

        What is not the engine's way adds to their errors.
        """
        of = {s.site: s.local_error or 0.0 for s in other.sites}
        pairs = [(s.local_error or 0.0, of[s.site]) for s in self.sites if s.site in of]
        differ = [(own, its) for own, its in pairs if abs(own - its) > NOTHING * its]
        return len(differ) > 1 and sum(own <= LESS * its for own, its in differ) >= SHARE * len(differ)


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
    segments = [s for s in sites if s.segment and any(ops.get(x) == "linear" for x in (*s.segment, s.site))]
    chosen = _spread(trace, [s.site for s in segments if s.local_error is not None])
    if not any(s.status is Status.DIVERGES for s in segments):
        return None

    def tried(name: str) -> _Tried | None:
        try:
            probe = Replay(arithmetic_named(name), trace, alignment)
            run_trace(model, trace, probe, chosen.__contains__)
        except ModelError:  # rows that are no whole groups of a kind
            return None
        judged = [s for s in probe.sites if s.site in chosen and s.local_error is not None]
        return _Tried(name, judged) if judged else None

    plain = tried(found.arithmetic.name)
    best = None if plain is None else min(_all_of(tried, plain, stated=stated), key=lambda t: t.error, default=None)
    if plain is None or best is None or not best.fits or not best.leaves_less_than(plain):
        return None
    return Fingerprint(arithmetic_named(best.name))


def _all_of(tried: Callable[[str], _Tried | None], plain: _Tried, *, stated: bool) -> Iterator[_Tried]:
    """Every arithmetic that is tried, until one leaves nothing but rounding: of products, of weights, of both."""
    bases = () if stated else tuple(base for base in (GGML, *BASES) if base != plain.name)
    nearest, least = "", plain.error
    for name in (*bases, *_held(plain.name)):
        if (of := tried(name)) is None:
            continue
        yield of
        if of.fits and of.error * STRONG <= plain.error:
            return
        if name not in bases and of.error < least:
            nearest, least = name.removeprefix(plain.name), of.error
    for base in bases if nearest else ():
        if (of := tried(base + nearest)) is not None:
            yield of


def _held(base: str) -> Iterator[str]:
    """An arithmetic with the weights held in each kind: all that can be, all but the norms, all but output or table."""
    for kind in KINDS:
        yield f"{base}+held={kind}"
        yield f"{base}+matrices={kind}+output={kind}" + (f"+embedding={kind}" if kind in ELEMENTS else "")


def _spread(trace: Trace, sites: Sequence[Site]) -> frozenset[Site]:
    """Some layers' sites of each number of tokens, and those outside the layers."""
    chosen: set[Site] = set()
    for step in stand_ins(trace.steps).values():
        of = [site for site in sites if site.step == step]
        layers = sorted({site.layer for site in of if site.layer is not None})
        some = {layers[(2 * i + 1) * len(layers) // (2 * MOST)] for i in range(MOST)} if len(layers) > MOST else layers
        chosen |= {site for site in of if site.layer is None or site.layer in some}
    return frozenset(chosen)
