"""Every statement by its id."""

from __future__ import annotations

from firstdiff.explaining.measured import (
    activations,
    alteration,
    curves,
    experts,
    frequencies,
    heads,
    kept_sums,
    masks,
    matrices,
    norms,
    orders,
    rotations,
    roundings,
    row_scales,
    softmaxes,
    tensors,
    terms,
    token_rows,
)
from firstdiff.hypotheses.hypothesis import Hypothesis

_OF = (
    alteration,
    terms,
    norms,
    row_scales,
    rotations,
    frequencies,
    softmaxes,
    masks,
    heads,
    matrices,
    token_rows,
    activations,
    orders,
    curves,
    roundings,
    kept_sums,
    tensors,
    experts,
)

MEASURED: dict[str, Hypothesis] = {of.id: of for module in _OF for of in module.STATEMENTS}
"""The statements. They are no faults that somebody foresaw: none is tried unless its parameters were measured."""
