"""Which of its terms a sum counted, and how often: inputs of a product, keys of attention, dimensions of a score.

The result is a sum over inputs. How the terms of two inputs go with each other over all tokens and outputs is the
product of how the two columns of activations do and how the two columns of the weight do, so that it is known for every
pair of inputs at the cost of two products (Schur's).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.numbers import stated
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.places import LITTLE, PERIODS, TAKES
from firstdiff.explaining.measured.regions import MOST, Changes, Region, regions
from firstdiff.explaining.measured.statement import Found
from firstdiff.explaining.measured.view import View
from firstdiff.hypotheses.products import spread
from firstdiff.model.attention import attend, scores
from firstdiff.model.operations import linear

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

OUTPUTS, TOKENS = 768, 24
"""Outputs and tokens that a product's inputs are measured by."""

HEADS = 8
"""Heads of scores that are measured by."""

RIGHT = 1e-6
"""The part of the most wrong head's squared error up to which another is right."""

USUAL = 6.0
"""How many times the squared error of most heads a wrong one has."""

MOVED = (1, 2, 4, 8, 16, 32, 64)
"""By how many places an operand may be read from elsewhere."""

PROMISING = 2
"""Of these so many are looked at closely: those by which most places, each by itself, take something of the error."""


@dataclass(frozen=True, eq=False)
class Sum:
    """Sums over an axis, several side by side: the result is `left` [b, token, term] times `right` [b, term, out].

    Parameters
    ----------
    axis, of
        What the terms are called, and the operand that has them, whose order they are in.
    left, right
        The two operands, for the recorded tokens and some of the outputs.
    error, scale
        What the candidate has more [b, token, out], and one over the norm of each token's result [token].
    total
        The squared error of all tokens and outputs.
    equations
        How many numbers the whole error is made of.
    seen
        Which outputs a token's result has [token, out]; None for all.
    where
        Which heads they are of, where that is not all.
    """

    axis: str
    of: str
    left: Floats
    right: Floats
    error: Floats
    scale: Floats
    total: float
    equations: int
    seen: npt.NDArray[np.bool_] | None = None
    where: dict[str, str] = field(default_factory=dict)

    @property
    def terms(self) -> int:
        """How many terms there are."""
        return int(self.left.shape[-1])

    @cached_property
    def of_rights(self) -> list[Floats]:
        """The products of the terms' right operands with each other, [term, term] of each sum."""
        return [right @ right.T for right in self.right]

    def changes(self, left: Floats, factor: float | None = None) -> Changes:
        """What it changes to take other numbers than nothing of the left operand: `left`."""
        n = self.terms
        along, between = np.zeros(n), np.zeros((n, n))
        for b in range(len(left)):
            scaled = left[b] * self.scale[:, None]
            error = self.error[b] * self.scale[:, None]
            if self.seen is None:
                along += (scaled * (error @ self.right[b].T)).sum(0)
                between += (scaled.T @ scaled) * self.of_rights[b]
                continue
            for token, seen in enumerate(self.seen):
                right = self.right[b][:, seen]
                along += scaled[token] * (right @ error[token, seen])
                between += np.outer(scaled[token], scaled[token]) * (right @ right.T)
        sampled = float(np.square(self.error * self.scale[:, None]).sum())
        return Changes(along, between, sampled, self.error.size, factor)


def counted_terms(view: View) -> Iterator[Found]:
    """Which terms of a call's sums count otherwise than once, and operands that are read from elsewhere."""
    made = sums_of(view)
    for of in made:
        yield from _scaled(of, of.left)
        yield from _moved(of)


def sums_of(view: View) -> list[Sum]:
    """The sums that a call makes; none of other calls, or of those with too many terms to be told apart."""
    op = view.call.op
    make = {linear: _product, attend: _attention, scores: _score}.get(op)
    return [] if make is None else list(make(view))


def _product(view: View) -> Iterator[Sum]:
    weight, x = view.call.argument("weight"), np.asarray(view.call.argument("x"), np.float64)
    n = weight.shape[-1]
    if n > MOST:
        return
    outputs = spread(weight.shape[0], OUTPUTS)
    for _, tokens in view.selections[-1:]:
        kept = tokens[spread(len(tokens), TOKENS)]
        right = np.asarray(weight.gather(outputs), np.float64).T
        yield Sum(
            "input", "x", x[view.rows[kept]][None], right[None], view.error[kept][:, outputs][None],
            view.scale[kept, 0], float(np.square(view.error * view.scale).sum()), view.error.size,
        )  # fmt: skip


def _attention(view: View) -> Iterator[Sum]:
    p, values, group = (view.call.argument(name) for name in ("p", "values", "group"))
    heads, _, keys = p.shape
    if keys > MOST:
        return
    held = np.asarray(values, np.float64)  # [S, H_kv, D]
    for _, tokens in view.selections[-1:]:
        kept = tokens[spread(len(tokens), TOKENS)]
        error = view.error[kept].reshape(len(kept), heads, -1).transpose(1, 0, 2)
        wrong, where = _wrong_heads(error)
        left = np.asarray(p, np.float64)[wrong][:, view.rows[kept]]
        right = np.stack([held[:, head // group] for head in wrong])
        yield Sum(
            "key", "p", left, right, error[wrong], view.scale[kept, 0],
            float(np.square(view.error * view.scale).sum()), view.error.size, where=where,
        )  # fmt: skip


def _score(view: View) -> Iterator[Sum]:
    q, keys, group = (view.call.argument(name) for name in ("q", "keys", "group"))
    for _, tokens in view.selections[-1:]:
        kept = tokens[spread(len(tokens), TOKENS)]
        error = view.error[:, kept]
        wrong, where = _wrong_heads(error)
        wrong = wrong[:HEADS]
        left = np.asarray(q, np.float64)[view.rows[kept]].transpose(1, 0, 2)[wrong]
        held = np.asarray(keys, np.float64).transpose(1, 2, 0)  # [H_kv, D, S]
        right = np.stack([held[head // group] for head in wrong])
        seen = view.result[wrong[0], kept] != 0
        yield Sum(
            "dimension", "q", left, right, error[wrong], view.scale[0, kept, 0],
            float(np.square(view.error * view.scale).sum()), view.error.size, seen, where,
        )  # fmt: skip


def _wrong_heads(error: Floats) -> tuple[Indices, dict[str, str]]:
    """The heads that are wrong [head, ..], and their places where some are right."""
    squares = np.square(error).sum((1, 2))
    usual = float(np.median(squares))
    wrong = np.arange(len(squares))
    if USUAL**2 * usual < squares.max():  # most are right, and say what rounding leaves
        wrong = np.flatnonzero(squares > max(RIGHT * squares.max(), USUAL * usual))
    return wrong, {} if len(wrong) == len(squares) else {"head": str(Pattern.of(wrong))}


def _scaled(of: Sum, left: Floats) -> Iterator[Found]:
    changes = of.changes(left)
    for region in regions(changes, PERIODS):
        if abs(region.factor) < LITTLE or region.left > changes.error / TAKES:
            continue
        by = stated(1 + region.factor, _error_of(region, changes))
        where = of.where if region.places is None else of.where | {of.axis: str(region.places)}
        values = {"of": of.of, **where, "by": by, "among": of.terms}
        yield Found("measured-terms", values, region.left / max(changes.error, 1e-300) * of.total)


def _moved(of: Sum) -> Iterator[Found]:
    """Terms whose left operand is read some places further on."""
    n = of.terms
    promising: list[tuple[float, int, Changes]] = []
    for by in (sign * shift for shift in MOVED for sign in (1, -1)):
        order = np.arange(n) + by
        inside = (order >= 0) & (order < n)
        if not inside.any():
            continue
        changes = of.changes(np.where(inside, of.left[..., np.where(inside, order, 0)] - of.left, 0.0), 1.0)
        alone = float(np.maximum(2 * changes.along - np.diagonal(changes.between), 0).sum())
        promising.append((alone, by, changes))
    best: Found | None = None
    for _, by, changes in sorted(promising, key=lambda one: -one[0])[:PROMISING]:
        region = min(regions(changes, PERIODS), key=lambda r: r.left, default=None)
        if region is None or region.left > changes.error / TAKES:
            continue
        left = region.left / max(changes.error, 1e-300) * of.total
        if best is None or left < best.left:
            inside = (np.arange(n) + by >= 0) & (np.arange(n) + by < n)
            chosen = region.places or Pattern.span(0, n)
            at = chosen.among(n)
            places = chosen if inside[at].all() else Pattern.of(at[inside[at]])
            values: dict[str, Any] = {"of": of.of, **of.where, "axis": of.axis, "moves": [[str(places), by]]}
            best = Found("measured-operand-taken", values, left)
    if best is not None:
        yield best


def _error_of(region: Region, changes: Changes) -> float:
    places = region.places or Pattern.span(0, len(changes.along))
    at = places.among(len(changes.along))
    between = float(changes.between[np.ix_(at, at)].sum())
    return float(np.sqrt(max(region.left, 0.0) / max(1, changes.equations) / between)) if between > 0 else 0.0
