"""Norms in whose place a dump holds what was normed, while what follows was computed from the norm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.judging.layout_options import candidates
from firstdiff.judging.measure import relative
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import linear, rms_norm
from firstdiff.model.outline import Awaited, outline, sources
from firstdiff.preflight.residual_stream import ALIKE, CLEARLY, FITS
from firstdiff.preflight.rows import recorded_rows
from firstdiff.verdict import DumpFinding
from firstdiff.verdict.ranges import extent


def norm_inputs(model: Model, trace: Trace) -> Iterator[DumpFinding]:
    """Find norms that are recorded as their own input, and that the engine has computed all the same."""
    values = outline(model, trace.steps)
    held = [value for value in values if value.call.op is rms_norm and _holds_input(trace, value)]
    if not held:
        return
    following: dict[Awaited, list[Awaited]] = defaultdict(list)
    for value in values:
        for source in sources(value.call):
            following[source].append(value)
    used = {value: _used_the_norm(model, trace, value, following[value]) for value in held}
    for point in dict.fromkeys(value.call.point for value in held):
        of = [value for value in held if value.call.point == point]
        # Where a product is wrong it does not tell: then it is as at the other layers, where these are all alike.
        if {used[value] for value in of} - {None} == {True}:
            yield _finding(model, trace, [Site(v.call.step, v.call.layer, v.call.point) for v in of])


def _holds_input(trace: Trace, value: Awaited) -> bool:
    """Whether a norm's input is recorded in its place."""
    source = next(sources(value.call), None)
    x, y = (None if v is None else recorded_rows(trace, v) for v in (source, value))
    if source is None or x is None or y is None:
        return False
    made = value.call.with_inputs({source: x}).compute(F32)
    known = (np.isfinite(x) & np.isfinite(y) & np.isfinite(made)).all(-1)
    if not known.any():
        return False
    return relative(y[known], x[known]) <= ALIKE and relative(made[known], x[known]) > CLEARLY * ALIKE


def _used_the_norm(model: Model, trace: Trace, value: Awaited, following: Sequence[Awaited]) -> bool | None:
    """Whether the products that follow were computed from the norm, and not from its input; None where none tells."""
    source = next(sources(value.call))
    x = recorded_rows(trace, source)
    if x is None:
        return None
    normed = value.call.with_inputs({source: x}).compute(F32)
    for product in following:
        if product.call.op is not linear:
            continue
        right, given = (_error(model, trace, product, value, y) for y in (normed, x))
        if min(right, given) <= FITS and CLEARLY * min(right, given) <= max(right, given):
            return right < given
    return None


def _error(model: Model, trace: Trace, product: Awaited, norm: Awaited, x: Array) -> float:
    """How far a recorded product is from that of an input, in the layout that suits it best."""
    call = product.call
    made = call.with_inputs({norm: x}).compute(F32)
    known = np.isfinite(x).all(-1)
    best = np.inf
    for layout in candidates(call.point, model):
        site = Site(call.step, call.layer, layout.source or call.point)
        read = layout.read(trace[site], made.shape) if site in trace else None
        if read is not None and read.shape == made.shape:
            best = min(best, relative(read[known], made[known]))
    return best


def _finding(model: Model, trace: Trace, sites: Sequence[Site]) -> DumpFinding:
    where = extent(sites, model.hp.n_layer, len(trace.steps))
    return DumpFinding(
        "input-as-norm",
        f"{where}: your dump holds the norm's input, and the tensors after it were computed from its output",
        "dump the norm's output, after the multiplication with its weight",
        tuple(sites),
    )
