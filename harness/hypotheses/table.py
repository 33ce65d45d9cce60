"""The table of hypotheses, in the order in which they are tried: of two that explain as well, the first is named."""

from __future__ import annotations

from firstdiff.hypotheses import attention, elsewhere, ends, feed_forward, loading, norms, residuals, rope
from firstdiff.hypotheses.hypothesis import Hypothesis

TABLE: dict[str, Hypothesis] = {
    h.id: h
    for family in (ends, norms, loading, rope, attention, residuals, feed_forward, elsewhere)
    for h in family.TABLE
}
