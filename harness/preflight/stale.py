"""Stale buffers: steps of a dump that repeat the tensors of another step, bit for bit.

No engine computes the same numbers of other tokens, or of the same at other positions. A buffer that is read when it
was written again, or not written yet, holds them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.model.arithmetic import Array
from firstdiff.verdict import DumpFinding
from firstdiff.verdict.ranges import enumerated

COPY = "copy each tensor when it is computed: your dump reads the buffers after they were used again"

TELLING = (Kind.NORM, Kind.PRODUCT, Kind.ROTATION, Kind.SCORES, Kind.PROBABILITIES, Kind.ATTENTION, Kind.ACTIVATION)
"""Kinds of which two layers are never equal. A sum may be: where both branches are zero, it is its input."""

TURNED = (Kind.ROTATION, Kind.SCORES, Kind.PROBABILITIES, Kind.ATTENTION)
"""Kinds that tell one position from another where the tokens are the same."""

AT_LEAST = 0.9
"""The share of two layers' tensors, or of two steps', that is equal where buffers are stale: the logits, or what a hook
copied in time, may be right all the same."""

FEWEST = 3  # different numbers in a tensor that tells anything: a mask, or weights of 1.0, are equal anywhere
SAMPLE = 64  # numbers of a tensor that are compared first
LOOKED_AT = 3  # tensors of a step whose samples are compared first
NAMED = 3  # tokens that are named


def same(trace: Trace, a: Site, b: Site) -> bool:
    """Whether two sites hold the same numbers, which are no few numbers again and again."""
    if a not in trace or b not in trace or sample(trace, a) != sample(trace, b):
        return False
    return np.array_equal(trace[a], trace[b]) and tells(trace[a])


def sample(trace: Trace, site: Site) -> tuple[tuple[int, ...], str, bytes]:
    """What equal tensors have in common: shape, dtype, and some numbers spread over them."""
    flat = trace[site].reshape(-1)
    return trace.shape(site), trace.dtype(site), flat[:: max(1, flat.size // SAMPLE)].tobytes()


def tells(x: Array) -> bool:
    """Whether numbers are so many that no other tensor has the same by chance, or of necessity.

    A mask is minus infinity, or overflows to it, in scores that tell all the same.
    """
    return not np.isnan(x).any() and len(np.unique(x[np.isfinite(x)])) >= FEWEST


def stale_steps(trace: Trace) -> Iterator[DumpFinding]:
    """Find steps that repeat the tensors of an earlier step."""
    by_step: dict[int, list[Site]] = defaultdict(list)
    for site in trace:
        by_step[site.step].append(site)
    seen: dict[object, int] = {}
    for now, sites in sorted(by_step.items()):
        looks = [(s.layer, s.point, *sample(trace, s)) for s in _spread(sites)]
        for before in sorted({seen[look] for look in looks if look in seen}):
            if repeated := _repeated(trace, before, sites):
                yield _finding(trace, before, now, repeated)
                break
        for look in looks:
            seen.setdefault(look, now)


def _spread(sites: Sequence[Site]) -> list[Site]:
    """Some sites inside the layers, up to the last one."""
    inside = [s for s in sites if s.layer is not None and kind_of(s.point) is not Kind.CACHE]
    return [inside[len(inside) * (i + 1) // LOOKED_AT - 1] for i in range(LOOKED_AT)] if inside else []


def _repeated(trace: Trace, before: int, sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites of a step that hold what an earlier step held; none where most do not.

    What grows with the positions has another size there, and says nothing. Of another token nothing is equal. Of the
    same one all is that comes before the first rotation, and where every token is the same, as good as all but what
    shows the position: this has to be equal as well. Where most of a step is zero, what is left are biases, which are
    equal rightly.
    """
    equal = {s for s in sites if same(trace, s, Site(before, s.layer, s.point))}
    both = [s for s in sites if kind_of(s.point) is not Kind.CACHE and _as_large(trace, s, before)]
    compared = [s for s in both if s in equal or tells(trace[s])]
    if 2 * len(compared) < len(both):
        return ()
    # A lookup of the wrong token makes all equal up to the first rotation.
    deep = any(s.layer or kind_of(s.point) in (Kind.ROTATION, Kind.ATTENTION, Kind.LOGITS) for s in equal)
    if _same_tokens(trace, before, sites[0].step):
        turned = [s for s in compared if kind_of(s.point) in TURNED]
        deep = equal.issuperset(turned) and any(kind_of(s.point) is Kind.ROTATION for s in turned)
    if not deep or sum(s in equal for s in compared) < AT_LEAST * len(compared):
        return ()
    # Of a stale step zeros are stale too.
    equal |= {s for s in both if np.array_equal(trace[s], trace[Site(before, s.layer, s.point)])}
    return tuple(s for s in sites if s in equal)


def _as_large(trace: Trace, site: Site, before: int) -> bool:
    """Whether a site's tensor has the same shape at an earlier step."""
    there = Site(before, site.layer, site.point)
    return there in trace and trace.shape(there) == trace.shape(site)


def _finding(trace: Trace, before: int, now: int, sites: tuple[Site, ...]) -> DumpFinding:
    was, own = (_tokens(trace.steps[step].tokens) for step in (before, now))
    ran, see = f"step {now} ran {own} and step {before} {was}", f"the engine ran step {now} on its own tokens"
    if _same_tokens(trace, before, now):
        then, here = (trace.steps[step].positions[0] for step in (before, now))
        ran = f"step {now} ran {own} at position {here} and step {before} at position {then}"
        see = f"the engine ran step {now} at position {here}"
    return DumpFinding(
        "stale-step",
        f"step {now} repeats step {before}'s tensors to the bit, though {ran}",
        f"{COPY}; where the logits repeat as well, see that {see}",
        sites,
    )


def _same_tokens(trace: Trace, before: int, now: int) -> bool:
    return trace.steps[now].tokens == trace.steps[before].tokens


def _tokens(tokens: Sequence[int]) -> str:
    named = [str(token) for token in tokens[:NAMED]]
    more = len(tokens) - NAMED
    return f"token{'s' * (len(tokens) > 1)} {enumerated([*named, *([f'{more:,} more'] if more > 0 else [])])}"
