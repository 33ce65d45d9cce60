"""Stale buffers: layers of a dump that hold the tensors of another layer, bit for bit.

Products of different weights on different inputs are never equal. One tensor that equals another layer's may be what
the engine went on with; where nearly all of a layer's do, its buffers were read too late or too early.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.judging.measure import relative
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.model.outline import outline, sources
from firstdiff.model.probe import Call
from firstdiff.preflight.rows import rows_of
from firstdiff.preflight.stale import AT_LEAST, COPY, TELLING, same, sample, tells
from firstdiff.verdict import DumpFinding
from firstdiff.verdict.ranges import enumerated

Pair = tuple[int, int]

OWN, OTHERS = 0.1, 0.3
"""Errors of a product made with the layer's own weight, in whatever arithmetic, and with any other weight."""

ROWS = 64  # outputs of a product that tell whose weight it was made with


def stale_layers(model: Model, trace: Trace) -> Iterator[DumpFinding]:
    """Find layers whose tensors are another layer's."""
    alike = {step: pairs for step in range(len(trace.steps)) if (pairs := _alike_products(trace, step))}
    if not alike:
        return
    calls = _products(model, trace)
    found: dict[tuple[tuple[int, ...], int | None], set[Site]] = defaultdict(set)
    for step, pairs in alike.items():
        equal = [pair for pair, points in pairs.items() if _are_alike(trace, calls, step, pair, points)]
        for layers in _classes(equal):
            owner = _owner(trace, calls, step, layers)
            found[layers, owner] |= {
                site
                for site in trace
                if site.step == step
                and site.layer in layers
                and site.layer != owner
                and any(same(trace, site, Site(step, n, site.point)) for n in layers if n != site.layer)
            }
    for (layers, owner), sites in found.items():
        yield _finding(layers, owner, tuple(site for site in trace if site in sites))


def _alike_products(trace: Trace, step: int) -> Mapping[Pair, set[str]]:
    """Pairs of layers of a step, and the products that look the same in both."""
    looks: dict[tuple[str, object], list[int]] = defaultdict(list)
    for site in trace:
        if site.step == step and site.layer is not None and kind_of(site.point) is Kind.PRODUCT:
            looks[site.point, sample(trace, site)].append(site.layer)
    pairs: dict[Pair, set[str]] = defaultdict(set)
    for (point, _), layers in looks.items():
        for pair in combinations(sorted(layers), 2):
            pairs[pair].add(point)
    return {pair: points for pair, points in pairs.items() if len(points) > 1}


def _products(model: Model, trace: Trace) -> dict[Site, Call]:
    """The calls of the products inside the layers."""
    calls = (awaited.call for awaited in outline(model, trace.steps))
    return {
        Site(c.step, c.layer, c.point): c for c in calls if c.layer is not None and kind_of(c.point) is Kind.PRODUCT
    }


def _are_alike(trace: Trace, calls: Mapping[Site, Call], step: int, pair: Pair, points: set[str]) -> bool:
    """Whether nearly all tensors of two layers are equal, products of different inputs among them."""
    first, second = pair
    both = [s for s in trace if s.step == step and s.layer == first and Site(step, second, s.point) in trace]
    compared = [s for s in both if kind_of(s.point) in TELLING and tells(trace[s])]
    equal = {s.point for s in compared if same(trace, s, Site(step, second, s.point))}
    inputs = {_input(calls[Site(step, first, p)]) for p in points & equal if Site(step, first, p) in calls}
    return len(inputs) > 1 and len(equal) >= AT_LEAST * len(compared)


def _input(call: Call) -> str:
    return next((source.call.point for source in sources(call)), "")


def _classes(pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
    """Layers that hold the same, the lowest first."""
    classes: dict[int, set[int]] = {}
    for first, second in sorted(pairs):
        of = next((lowest for lowest, members in classes.items() if first in members), first)
        classes.setdefault(of, {of}).add(second)
    return [tuple(sorted(members)) for members in classes.values()]


def _owner(trace: Trace, calls: Mapping[Site, Call], step: int, layers: Sequence[int]) -> int | None:
    """The layer whose own weights made the tensors; None where that cannot be told."""
    for site in calls:
        if site.step != step or site.layer != layers[0]:
            continue
        of = {n: calls[at] for n in layers if (at := Site(step, n, site.point)) in calls}
        made = {n: _error(trace, call, site) for n, call in of.items()}
        errors = {n: error for n, error in made.items() if error is not None}
        ranked = sorted(errors, key=errors.__getitem__)
        if ranked and errors[ranked[0]] < OWN and all(errors[n] > OTHERS for n in ranked[1:]):
            return ranked[0]
    return None


def _error(trace: Trace, call: Call, held: Site) -> float | None:
    """How far a recorded product is from that of a layer's weight; None where that is not recorded plainly."""
    source = next(sources(call), None)
    if source is None or call.argument("heads") is not None:
        return None
    weight, bias = call.argument("weight"), call.argument("bias")
    x = rows_of(trace, Site(held.step, held.layer, source.call.point), source.shape)
    y = rows_of(trace, held, (source.shape[0], weight.shape[0]))
    if x is None or y is None:
        return None
    rows = np.linspace(0, weight.shape[0] - 1, min(ROWS, weight.shape[0])).astype(np.int64)
    part = call.with_inputs({source: x}).with_arguments(
        weight=weight.pick(rows), bias=None if bias is None else bias.pick(rows)
    )
    made, seen = part.compute(F32), y[:, rows]
    known = ~np.isnan(seen) & ~np.isnan(made)
    return relative(np.where(known, seen, 0), np.where(known, made, 0)) if known.any() else None


def _finding(layers: Sequence[int], owner: int | None, sites: tuple[Site, ...]) -> DumpFinding:
    others = [layer for layer in layers if layer != owner]
    said = f"layer{'s' * (len(others) > 1)} {_named(others)} hold{'s' * (len(others) == 1)}"
    whose = "the same tensors" if owner is None else f"layer {owner}'s tensors"
    return DumpFinding("stale-layers", f"{said} {whose} to the bit, which different weights never give", COPY, sites)


def _named(layers: Sequence[int]) -> str:
    first, last = layers[0], layers[-1]
    together = len(layers) > 1 and last - first == len(layers) - 1
    return f"{first} to {last}" if together else enumerated([str(layer) for layer in layers])
