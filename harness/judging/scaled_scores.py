"""Scores of engines that scale Q before the product, and not the scores behind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from firstdiff.dumps.points import Kind, kind_of
from firstdiff.judging.case import Case
from firstdiff.judging.traced import Traced
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.probe import Call


def computed_as_scaled(call: Call, arithmetic: Arithmetic) -> Array:
    """What a call gives; scores of a scaled Q are computed of that, and divided by the scale."""
    query = _scaled_query(call)
    if query is None:
        return call.compute(arithmetic)
    computed = call.with_arguments(q=query).compute(arithmetic)
    return np.asarray(np.asarray(computed) / computed.dtype.type(query.shape[-1] ** -0.5))


def as_scaled(case: Case) -> Case:
    """A case of scores as the candidate computes them: of a scaled Q."""
    query = _scaled_query(case.call)
    if query is None:
        return case
    call = case.call.with_arguments(q=query)
    recorded, computed = (x * x.dtype.type(query.shape[-1] ** -0.5) for x in (case.recorded, case.computed))
    return replace(case, call=call, recorded=recorded, computed=computed)


def _scaled_query(call: Call) -> Array | None:
    """The query of a call of scores as the candidate scales it; None for any other call."""
    source = call.sources[0] if kind_of(call.point) is Kind.SCORES and call.sources else None
    return source.scaled if isinstance(source, Traced) else None
