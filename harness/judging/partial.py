"""What a reader must know of tensors that hold other rows or columns than the step's tokens and the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.readers import plain, wider, wider_turned
from firstdiff.judging.rows import Rows
from firstdiff.model.arithmetic import Array

Cut = tuple[int, int, Rows]
"""How many rows a tensor has, how many tokens its step has, and where the rows that are judged lie."""


def rows_told(cut: Mapping[Site, Cut]) -> tuple[str, ...]:
    """Say of which tensors only some rows are recorded, and of which there are more rows than tokens."""
    few = {site: of for site, of in cut.items() if of[0] < of[1]}
    many = {site: of for site, of in cut.items() if of[0] > of[1]}
    return tuple(
        told
        for told in (
            _told(few, "fewer rows than the step has tokens") if few else "",
            _told(many, "more rows than the step has tokens") if many else "",
        )
        if told
    )


def _told(cut: Mapping[Site, Cut], what: str) -> str:
    (site, (rows, tokens, which)), count = next(iter(cut.items())), len(cut)
    tensors = "1 tensor has" if count == 1 else f"{count:,} tensors have"
    example = f"{site}: {rows} row{'s' * (rows != 1)}, {tokens} token{'s' * (tokens != 1)}"
    if rows < tokens:
        one = f"the row is taken for the {which} token's, and no other token is judged there"
        judged = one if rows == 1 else f"the rows are taken for the {which} tokens', and no other token is judged there"
    else:
        judged = f"only the {which} rows are judged, one for each token"
    return f"{tensors} {what} ({example}): {judged}"


def padding(trace: Trace, alignment: Alignment, vocabulary: int) -> tuple[tuple[str, ...], str | None]:
    """What is said of logits that were read as wider than the vocabulary; and what is wrong if the padding wins.

    Returns
    -------
    Notes, and a sentence where at some step the last token's largest logit stands behind the vocabulary.
    """
    read = {point: layout.read for point, layout in alignment.layouts.items() if layout.read in (wider, wider_turned)}
    columns_in = {site: -1 if read[site.point] is wider else -2 for site in trace if site.point in read}
    wide = {site: axis for site, axis in columns_in.items() if trace.shape(site)[axis] > vocabulary}
    if not wide:
        return (), None
    first, axis = next(iter(wide.items()))
    columns = trace.shape(first)[axis]
    note = (
        f"{first.point} has {columns:,} columns, and the vocabulary {vocabulary:,} tokens: the first {vocabulary:,} "
        f"columns are judged, the {columns - vocabulary:,} behind them are padding"
    )
    won = [
        (site.step, at)
        for site, axis in wide.items()
        if (at := _largest(trace[site], axis)) is not None and at >= vocabulary
    ]
    if not won:
        return (f"{note}, and none of them is the largest at any step",), None
    return (note,), _wins(won, vocabulary)


def _largest(x: Array, axis: int) -> int | None:
    x = np.moveaxis(x, axis, -1)
    rows = plain(x, (x.size // x.shape[-1], x.shape[-1]))
    last = None if rows is None else rows[-1]
    return None if last is None or not np.isfinite(last).all() else int(last.argmax())


def _wins(won: Sequence[tuple[int, int]], vocabulary: int) -> str:
    step, column = won[0]
    more = f" (and at {len(won) - 1:,} more step{'s' * (len(won) > 2)})" if len(won) > 1 else ""  # noqa: PLR2004 - one more
    return (
        f"column {column:,} of the logits is the largest at step {step}{more}, and the vocabulary has "
        f"{vocabulary:,} tokens: leave the padding out before a token is chosen, or fill it with minus infinity"
    )
