"""What went before a trace begins: tokens whose keys and values its first step reads, and which it does not tell."""

from __future__ import annotations

from firstdiff.dumps import Trace
from firstdiff.dumps.points import Kind, of_kind
from firstdiff.model.engine import Model

_SCORES = of_kind(Kind.SCORES, Kind.PROBABILITIES)


def missing_past(model: Model, trace: Trace) -> int:
    """How many tokens were cached before the first step of a trace, by its positions.

    Positions that begin behind 0 may be wrong as well: scores that have no more keys than the step has tokens say that
    nothing was cached.
    """
    if not trace.steps or not trace.steps[0].positions:
        return 0
    positions = trace.steps[0].positions
    past, tokens = positions[0], len(positions)
    if past <= 0 or any(p != past + i for i, p in enumerate(positions)):
        return 0
    shapes = [trace.shape(site) for site in trace if site.step == 0 and site.point in _SCORES]
    return past if all(_keys(shape, model.hp.n_head) >= past + tokens for shape in shapes) else 0


def _keys(shape: tuple[int, ...], heads: int) -> int:
    """How many keys scores can have at most: their longest axis, but for that of the heads."""
    rest = list(shape)
    if heads in rest:
        rest.remove(heads)
    return max(rest, default=0)


def begins_told(past: int) -> tuple[str, ...]:
    """Say that a trace begins in the middle, and what cannot be judged for that."""
    if not past:
        return ()
    cached = "1 token was" if past == 1 else f"{past:,} tokens were"
    told = (
        f"the dump begins at position {past:,}, when {cached} cached already: attention is judged only where the dump "
        "holds the cache (k_cache and v_cache), and no other engine is run beside it"
    )
    return (told,)
