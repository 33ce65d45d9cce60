"""Which row of the embedding each token was given, by the nearest of all rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.statement import Found, is_one, statement, where
from firstdiff.explaining.measured.view import View, tokens_of
from firstdiff.hypotheses.hypothesis import Scene, Values
from firstdiff.model.operations import embed
from firstdiff.model.probe import Call

Indices = npt.NDArray[np.intp]


def other_token_rows(view: View) -> Iterator[Found]:
    """Tokens that were given the row of another token: of the one so many places on, or of the id so many on."""
    if view.call.op is not embed or not view.by_token:
        return
    ids = np.asarray(view.call.argument("tokens"), np.int64)
    given = view.result + view.error
    wrong = np.flatnonzero(view.errors > view.case.floor)
    weight = view.call.argument("weight")
    size = np.square(given[wrong]).sum(1)
    best, nearest = np.full(len(wrong), np.inf), np.zeros(len(wrong), np.intp)
    buffer = weight.buffer()
    for start, stop in weight.chunks():
        some = np.asarray(weight.rows(start, stop, buffer), np.float64)
        distance = np.square(some).sum(1)[None] - 2 * given[wrong] @ some.T + size[:, None]
        at = distance.argmin(1)
        least = distance[np.arange(len(at)), at]
        nearest = np.where(least < best, start + at, nearest)
        best = np.minimum(best, least)
    if (best > 1e-3 * size).any():
        return
    rows = view.rows[wrong]
    for by in np.unique(nearest - ids[rows]):
        here = rows[nearest - ids[rows] == by]
        if 2 * len(here) > len(rows) and len(here) > 1:  # one token's row is at some distance from its own, always
            yield Found("measured-ids", {"token": str(tokens_of(here, len(ids))), "ids": int(by)}, 0.0)
            if len(here) == len(rows) == len(view.rows):
                yield Found("measured-ids", {"ids": int(by)}, 0.0)
    for by in range(-3, 4):
        there = np.clip(rows + by, 0, len(ids) - 1)
        if by and (ids[there] == nearest).all():
            yield Found("measured-ids", {"token": str(tokens_of(rows, len(ids))), "tokens": by}, 0.0)
            yield Found("measured-ids", {"tokens": by}, 0.0)


def ids_moved(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The embedding with other tokens' rows."""
    ids = np.array(call.argument("tokens"), np.int64)
    pattern = Pattern.read(values["token"]) if "token" in values else Pattern.span(0, len(ids))
    if not pattern.fits(len(ids)):
        return None
    at = pattern.among(len(ids))
    if "ids" in values:
        ids[at] += values["ids"]
    else:
        ids[at] = ids[np.clip(at + values["tokens"], 0, len(ids) - 1)]
    if ids.min() < 0 or ids.max() >= call.argument("weight").shape[0]:
        return None
    return call.with_arguments(tokens=tuple(map(int, ids)))


def _ids(values: Values) -> str:
    who = (where(values) or "all tokens") + (" has" if is_one(values) else " have")
    if "ids" in values:
        return f"{who} the embedding of the token whose id is {values['ids']:+d} from their own"
    by = values["tokens"]
    return f"{who} the embedding of the token {abs(by)} {'after' if by > 0 else 'before'} them"


STATEMENTS = (
    statement(
        "measured-ids",
        "other rows of the embedding",
        ids_moved,
        _ids,
        "look up each token's own row, without an offset",
        ops=(embed,),
    ),
)
