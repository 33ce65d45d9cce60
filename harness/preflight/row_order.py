"""Layers whose rows a dump holds in another order than that of the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Trace
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import rms_norm
from firstdiff.model.outline import Awaited, outline, sources
from firstdiff.preflight.rows import recorded_rows
from firstdiff.verdict import DumpFinding
from firstdiff.verdict.ranges import enumerated

LIKE, UNLIKE = 0.1, 0.3
"""Relative differences of a norm's row from what its own input gives, in the coarsest arithmetic, and what another
token's does."""

NAMED = 3  # rows that are named

Order = npt.NDArray[np.int64]
"""For each row the token that it is of."""


def row_orders(model: Model, trace: Trace) -> Iterator[DumpFinding]:
    """Find layers whose rows are in another order than those of what follows.

    A norm tells in which order its rows are against its input's. Where the order changes and changes back, the engine
    has computed each token with its own values: rows that an engine exchanges stay so to the end.
    """
    between = _between_layers(model, trace)
    for step, norms in between.items():
        if len(norms) < model.hp.n_layer + 1:
            continue
        order = np.arange(len(trace.steps[step].tokens))
        found: dict[int, Order] = {}
        for value in norms:
            change = _change(trace, value)
            if change is None:
                break
            order = order[change]
            if value.call.layer is not None and (order != np.arange(len(order))).any():
                found[value.call.layer] = order
        else:
            if found and (order == np.arange(len(order))).all():
                yield _finding(trace, step, found)


def _between_layers(model: Model, trace: Trace) -> Mapping[int, list[Awaited]]:
    """For each step of several tokens the norms whose input comes from another layer than they are in."""
    found: dict[int, list[Awaited]] = {}
    for value in outline(model, trace.steps):
        call, source = value.call, next(sources(value.call), None)
        if call.op is rms_norm and source is not None and source.call.layer != call.layer:
            found.setdefault(call.step, []).append(value)
    return {step: norms for step, norms in found.items() if len(trace.steps[step].tokens) > 1}


def _change(trace: Trace, value: Awaited) -> Order | None:
    """For each row of a norm the row of its input that it was computed from; None where that cannot be told."""
    source = next(sources(value.call))
    x, y = (recorded_rows(trace, v) for v in (source, value))
    if x is None or y is None or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    made = value.call.with_inputs({source: x}).compute(F32)
    same = np.arange(len(y))
    if (_errors(y, made) <= UNLIKE).all():
        return same
    size = np.linalg.norm(made, axis=-1) + np.finfo(np.float32).tiny
    found = np.asarray((y @ (made / size[:, None]).T).argmax(-1), np.int64)
    if len(set(found.tolist())) < len(found) or (_errors(y, made[found]) > LIKE).any():
        return None
    return found


def _errors(x: Array, y: Array) -> Array:
    """Relative difference of each row."""
    size = np.maximum(np.linalg.norm(y, axis=-1), np.finfo(np.float32).tiny)
    return np.asarray(np.linalg.norm(x - y, axis=-1) / size)


def _finding(trace: Trace, step: int, found: Mapping[int, Order]) -> DumpFinding:
    layers, (first, order) = list(found), next(iter(found.items()))
    moved = np.flatnonzero(order != np.arange(len(order)))[:NAMED]
    rows, places = (enumerated([str(n) for n in numbers]) for numbers in (moved, _positions(trace, step, order[moved])))
    several, named = len(layers) > 1, enumerated([str(layer) for layer in layers])
    return DumpFinding(
        "rows-in-another-order",
        f"in step {step}, the rows of layer{'s' * several} {named} are in another order than those of the layers "
        f"before and after, which went on with the right ones: in layer {first}, rows {rows} are those of the tokens "
        f"at positions {places}",
        "write each row at its token's place: if the tokens were sorted for a batch, undo that before you dump",
        tuple(site for site in trace if site.step == step and site.layer in found),
    )


def _positions(trace: Trace, step: int, places: Order) -> list[int]:
    return [trace.steps[step].positions[place] for place in places]
