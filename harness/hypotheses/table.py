"""The table of hypotheses, in the order in which they are tried: of two that explain as well, the first is named."""

from __future__ import annotations

from firstdiff.hypotheses import attention, blocks, elsewhere, ends, feed_forward, loading, norms, residuals, rope
from firstdiff.hypotheses.hypothesis import Hypothesis

TABLE: dict[str, Hypothesis] = {
    h.id: h
    for family in (ends, norms, loading, blocks, rope, attention, residuals, feed_forward, elsewhere)
    for h in family.TABLE
}

EQUIVALENT: tuple[frozenset[str], ...] = tuple(
    map(
        frozenset,
        (
            ("rope-base", "rope-denominator"),  # base ** (-2 i / n) is another base's ** (-2 i / head_dim)
            ("weight-transposed", "weight-reinterpreted"),  # of a square weight
            ("weight-transposed", "head-transposed"),
            ("weight-swapped", "fused-split"),  # gate and up exchanged is [gate; up] split up first
            ("cache-padding", "sink-added"),  # n scores of 0 are one of log(n)
            ("rope-position", "rope-none"),  # of a single token that is turned as if at 0
            ("rope-position", "rope-offset"),
            ("rope-offset", "rope-none"),
            ("rope-scale", "rope-offset"),  # of a single token
            ("rope-scale", "rope-position"),
        ),
    )
)
"""Hypotheses that can give the same numbers, for the reason beside them: no recording tells them apart."""
