"""A candidate's wrong tokens found again elsewhere: in another recorded tensor, or another row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.describing.compared import HUGE, Compared, Floats, Indices, Mask, left
from firstdiff.explaining.describing.part_matching import PartMatch, part_match, wrong_part
from firstdiff.verdict.ranges import MISSING, spans

SLICES = 64
"""Numbers of a slice that it is looked for by; what is found is verified in full."""

LEAST = 8
"""Fewest numbers by which a slice is recognised."""

EQUAL = 0.02
"""The most that equality may leave, however high the floor: layers of one model differ by more."""

TOLD = 3  # matches in a sentence

OWN = "the reference"  # what the reference's own rows are called

NEARER = 10.0
"""How many times nearer than the reference's own row another one must be to be the candidate's."""


@dataclass(frozen=True, slots=True)
class Match:
    """Where a candidate's wrong tokens were found: `sources` [n] are the rows that `tokens` [n] equal."""

    name: str
    tokens: tuple[int, ...]
    sources: tuple[int, ...]
    whole: bool
    share: float

    @property
    def says(self) -> str:
        """In words: ``token 3 equals token 2 of the reference``."""
        if self.whole:
            return f"equals {self.name}"
        if len(self.tokens) == 1:
            return f"token {self.tokens[0]} equals token {self.sources[0]} of {self.name}"
        tokens = _listed(self.tokens)
        if len(set(self.sources)) == 1:
            return f"tokens {tokens} all equal token {self.sources[0]} of {self.name}"
        shifts = {t - s for t, s in zip(self.tokens, self.sources, strict=True)}
        if shifts == {0}:
            return f"tokens {tokens} equal the same tokens of {self.name}"
        if len(shifts) == 1:
            return f"tokens {tokens} equal tokens {_listed(self.sources)} of {self.name}"
        pairs = list(zip(self.tokens, self.sources, strict=True))
        shown = ", ".join(f"{t} equals {s}" for t, s in pairs[:TOLD])
        return f"tokens equal others of {self.name}: {shown}{', …' if len(pairs) > TOLD else ''}"

    @property
    def values(self) -> dict[str, Any]:
        """For JSON."""
        rows = {} if self.whole else {"tokens": list(self.tokens), "rows": list(self.sources)}
        return {"of": self.name} | rows


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A candidate's wrong tokens as rows [wrong, row].

    `allowed` [wrong] is the distance up to which another row equals each, `columns` are the numbers looked at first.
    """

    tokens: Indices
    values: Floats
    counts: Mask
    allowed: Floats
    columns: Indices


def elsewhere(x: Compared, others: Iterable[tuple[str, npt.NDArray[Any]]]) -> Match | PartMatch | None:
    """Find the candidate's wrong tokens in other recorded tensors, or in other rows of the reference.

    The first tensor that holds all of them is taken, else the first that holds what is wrong of each token, else the
    one that holds most of them.
    """
    wanted, part = _rows(x), wrong_part(x)
    if not len(wanted.tokens) and part is None:
        return None
    best, shared, distinct = None, None, _distinct(x, wanted)
    for name, array in _with_reference(x, others):
        if part is not None and shared is None and name != OWN:
            shared = part_match(part, name, array)
        rows = _as_rows(x, array)
        if rows is None:
            continue
        found = _found(x, wanted if array is x.reference else distinct, name, rows)
        if found is None:
            continue
        if found.whole or len(found.tokens) == np.count_nonzero(x.errors > x.floor):
            return found
        if best is None or len(found.tokens) > len(best.tokens):
            best = found
    return best if shared is None else shared


def _with_reference(
    x: Compared, others: Iterable[tuple[str, npt.NDArray[Any]]]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    yield OWN, x.reference
    yield from others


def _rows(x: Compared) -> Rows:
    """The wrong tokens that can be recognised: with enough numbers, and not all the same."""
    values, counts = (np.moveaxis(a, x.token_axis, 0).reshape(len(x.errors), -1) for a in (x.candidate, x.counts))
    errors, scale = x.errors, x.scale.ravel()
    tokens = np.flatnonzero(errors > x.floor)
    lowest = np.where(counts[tokens], values[tokens], np.inf).min(1, initial=np.inf)
    highest = np.where(counts[tokens], values[tokens], -np.inf).max(1, initial=-np.inf)
    tokens = tokens[(counts[tokens].sum(1) >= LEAST) & (highest > lowest)]
    norms = np.sqrt(np.einsum("tn,tn->t", values[tokens], values[tokens]))
    allowed = np.minimum(min(x.floor, EQUAL) * norms, errors[tokens] / scale[tokens] / NEARER)
    n = values.shape[1]
    columns = np.unique(np.random.default_rng(0).integers(0, n, SLICES)) if n > SLICES else np.arange(n)
    return Rows(tokens, values[tokens], counts[tokens], allowed, columns)


def _distinct(x: Compared, wanted: Rows) -> Rows:
    """Those rows that differ from all others in the reference: equal inputs make equal rows, which says nothing."""
    reference = np.moveaxis(x.reference, x.token_axis, 0).reshape(len(x.errors), -1)[:, wanted.columns]
    own = replace(wanted, values=np.zeros_like(wanted.values), counts=np.ones_like(wanted.counts))
    own.values[:, wanted.columns] = reference[wanted.tokens]
    alone = _near(own, reference).sum(1) <= 1
    return replace(
        wanted,
        tokens=wanted.tokens[alone],
        values=wanted.values[alone],
        counts=wanted.counts[alone],
        allowed=wanted.allowed[alone],
    )


def _as_rows(x: Compared, array: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Another tensor as rows of the candidate's length; None where it has none."""
    n = x.row
    if array.ndim == len(x.axes):
        array = np.moveaxis(array, x.token_axis, 0)
    elif x.token_axis:
        return None
    if not array.ndim or not array.size or array.size // array.shape[0] != n:
        return None
    return array.reshape(array.shape[0], -1)


def _found(x: Compared, wanted: Rows, name: str, rows: npt.NDArray[Any]) -> Match | None:
    """Which of the wanted rows are rows of another tensor."""
    near = _near(wanted, _known(rows[:, wanted.columns]))  # [wrong, rows]
    if not near.any():
        return None
    steps = (wanted.tokens[:, None] - np.arange(len(rows)))[near]
    usual = int(np.bincount(steps + len(rows)).argmax()) - len(rows)
    tokens, sources = [], []
    for i, token in enumerate(wanted.tokens):
        images = np.flatnonzero(near[i])
        for s in images[np.argsort(np.abs(token - images - usual), kind="stable")][:4]:
            delta = np.where(wanted.counts[i], wanted.values[i] - _known(rows[s]), 0.0)
            if np.sqrt(delta @ delta) <= wanted.allowed[i]:
                tokens.append(int(token))
                sources.append(int(s))
                break
    if len(tokens) < len(wanted.tokens):  # the same token of another tensor is a copy: rope leaves position 0 as it is
        pairs = [(t, s) for t, s in zip(tokens, sources, strict=True) if t != s]
        tokens, sources = [t for t, _ in pairs], [s for _, s in pairs]
    if not tokens:
        return None
    energy = x.errors**2
    whole = tokens == sources and name != OWN and _all_equal(x, rows)
    share = 1.0 if whole else float(energy[tokens].sum() / energy.sum())
    return Match(name, tuple(tokens), tuple(sources), whole, share)


def _known(rows: npt.NDArray[Any]) -> Floats:
    """In float64; what is not finite equals nothing."""
    wide = np.asarray(rows, np.float64)
    return np.where(np.abs(wide) < HUGE, wide, 1e30)


def _near(wanted: Rows, rows: Floats) -> Mask:
    """Which rows may be equal, judged by some columns: squared distances by way of a matrix product."""
    a = np.where(wanted.counts, wanted.values, 0.0)[:, wanted.columns]
    m = wanted.counts[:, wanted.columns].astype(np.float64)
    distance = (a * a).sum(1)[:, None] - 2 * a @ rows.T + m @ (rows * rows).T
    rounding = 1e-14 * ((a * a).sum(1)[:, None] + m @ (rows * rows).T)
    near: Mask = distance <= (wanted.allowed**2)[:, None] + rounding
    return near


def _all_equal(x: Compared, rows: npt.NDArray[Any]) -> bool:
    """Whether a tensor of as many rows is the candidate's, right tokens and all."""
    if len(rows) != len(x.errors):
        return False
    shape = (len(rows), *(n for i, n in enumerate(x.reference.shape) if i != x.token_axis))
    other = np.where(x.counts, np.moveaxis(_known(rows).reshape(shape), 0, x.token_axis), 0.0)
    return left(x, other).holds


def _listed(indices: Sequence[int]) -> str:
    """Runs of indices, never as ``all but``."""
    return spans(sorted(set(indices)), max(indices) + MISSING + 2)
