"""Slices of a candidate's tensor found again elsewhere: in another recorded tensor, another row, another order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.compared import HUGE, Compared, Floats, Indices, Left, Mask, left
from firstdiff.measure import MISSING, spans
from firstdiff.regularity import divisors, orders

SLICES = 64
"""Numbers of a slice that it is looked for by; what is found is verified in full."""

PROBES = 24
"""Slices looked for before all are: if one of these is nowhere, there is no permutation."""

MOST_SLICES = 4096
"""Up to so many slices, irregular orders are found too: that takes a matrix of their distances."""

LEAST = 8
"""Fewest numbers by which a slice is recognised."""

EQUAL = 0.02
"""The most that equality may leave, however high the floor: layers of one model differ by more."""

TOLD, LISTED = 3, 256  # moved slices in a sentence, and in a finding's values

SWAP = 2  # the fewest slices that can be in another order

NEARLY = 0.1
"""The share of the error, or ten floors, up to which some numbers are as an order has them: all are looked at then."""

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
            (by,) = shifts
            way = "before" if by > 0 else "after"
            return f"tokens {tokens} equal {self.name}'s {abs(by)} {way}, tokens {_listed(self.sources)}"
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
    """A candidate's wrong tokens as rows [wrong, row], and what is left of each when the reference's is taken."""

    tokens: Indices
    values: Floats
    counts: Mask
    norms: Floats
    allowed: Floats
    columns: Indices


def elsewhere(x: Compared, others: Iterable[tuple[str, npt.NDArray[Any]]]) -> Match | None:
    """Find the candidate's wrong tokens in other recorded tensors, or in other rows of the reference.

    The first tensor that holds all of them is taken, else the one that holds most.
    """
    wanted = _rows(x)
    if not len(wanted.tokens):
        return None
    best: Match | None = None
    for name, array in _with_reference(x, others):
        rows = _as_rows(x, array)
        if rows is None:
            continue
        found = _found(x, wanted, name, rows)
        if found is None:
            continue
        if found.whole or len(found.tokens) == np.count_nonzero(x.errors > x.floor):
            return found
        if best is None or len(found.tokens) > len(best.tokens):
            best = found
    return best


def _with_reference(
    x: Compared, others: Iterable[tuple[str, npt.NDArray[Any]]]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    yield "the reference", x.reference
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
    return Rows(tokens, values[tokens], counts[tokens], norms, allowed, columns)


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
    if not tokens:
        return None
    energy = x.errors**2
    whole = tokens == sources and name != "the reference" and _all_equal(x, rows)
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


def reordered(x: Compared) -> tuple[str, dict[str, Any], Left] | None:
    """Find the reference's values in another order: axes exchanged, or dims or heads permuted."""
    for says, values, predicted in _orders(x):
        rest = left(x, predicted)
        if rest.holds:
            return says, values, rest
    return None


def _orders(x: Compared) -> Iterator[tuple[str, dict[str, Any], Floats]]:
    yield from _transposed(x)
    for name in ("heads", "dims"):
        if name in x.axes and x.lengths[name] > 1:
            yield from _permuted(x, name)


def _transposed(x: Compared) -> Iterator[tuple[str, dict[str, Any], Floats]]:
    """The reference's buffer with two axes in the other order, also of heads that are merged into dims."""
    if not x.counts.all():
        return
    shape = x.reference.shape
    flat = x.reference.ravel()
    places = _telling(x)
    for says, split, order in _splits(x):
        turned = tuple(split[i] for i in order)
        index = np.unravel_index(places, turned)
        source = np.ravel_multi_index([index[order.index(i)] for i in range(3)], tuple(split))
        delta = (x.candidate.ravel()[places] - flat[source]) * np.broadcast_to(x.scale, shape).ravel()[places]
        if np.sqrt(np.square(delta).mean() * x.row) <= NEARLY * max(NEARER**2 * x.floor, float(x.errors.max())):
            yield says, {"shape": list(turned)}, flat.reshape(split).transpose(order).reshape(shape)


def _splits(x: Compared) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """The shape of a buffer as three axes, and the order in which they may lie in place of it."""
    shape = x.reference.shape
    if "heads" in x.axes:
        for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
            says = f"values lie in the order [{', '.join(x.axes[i] for i in order)}] in place of [{', '.join(x.axes)}]"
            yield says, shape, order
        return
    for heads in divisors(shape[1])[1:]:
        dims = shape[1] // heads
        says = f"tokens and heads are exchanged, taking {heads} heads of {dims} dims"
        if dims == 1:
            says = "values lie in the order [dims, tokens] in place of [tokens, dims]"
        yield says, (shape[0], heads, dims), (1, 0, 2)


def _telling(x: Compared) -> Indices:
    """Some places, the worst among them."""
    wrong = np.abs((x.candidate - x.reference) * x.scale).ravel()
    spread = np.linspace(0, wrong.size - 1, SLICES).astype(np.intp)
    worst = np.argpartition(wrong, -min(SLICES, wrong.size))[-SLICES:]
    places: Indices = np.union1d(spread, worst).astype(np.intp)
    return places


def _permuted(x: Compared, name: str) -> Iterator[tuple[str, dict[str, Any], Floats]]:
    """Slices along an axis in another order, regular ones first."""
    axis, n = x.axes.index(name), x.lengths[name]
    a, b, allowed = _slices(x, axis)
    own = np.sqrt(((a - b) ** 2).sum(1))
    moving = np.flatnonzero(own > allowed)
    if len(moving) < SWAP:
        return
    probes = moving[np.unique(np.linspace(0, len(moving) - 1, PROBES).astype(np.intp))]
    near = _distances(a[probes], b) <= (allowed[probes] ** 2)[:, None]
    if not near.any(1).all():
        return
    known = {int(p): np.flatnonzero(near[i]) for i, p in enumerate(probes)}
    for says, order in orders(n, known):
        yield f"{name} are {says}", {"axis": name, "order": says}, x.reference.take(order, axis)
    found = _irregular(a, b, moving) if len(moving) <= MOST_SLICES and a.shape[1] * len(moving) >= LEAST else None
    if found is not None:
        order = np.arange(n)
        order[moving] = found
        yield (
            _irregular_words(name, moving, order),
            {"axis": name, "order": _listed_order(order)},
            x.reference.take(order, axis),
        )


def _slices(x: Compared, axis: int) -> tuple[Floats, Floats, Floats]:
    """Slices along an axis [n, some numbers of each], and the distance up to which two of them may be equal."""
    n = x.reference.shape[axis]
    size = x.reference.size // n
    places = np.unique(np.linspace(0, size - 1, min(size, SLICES)).astype(np.intp))
    a, b = ((np.moveaxis(v * x.scale, axis, 0).reshape(n, -1)[:, places]) for v in (x.candidate, x.reference))
    entry = x.floor * np.sqrt(len(x.errors) / x.reference.size)  # of a token's error spread evenly over its values
    allowed = 3 * entry * np.sqrt(len(places)) + x.floor * np.sqrt((a * a).sum(1))
    return a, b, allowed + 1e-12


def _distances(a: Floats, b: Floats) -> Floats:
    """Squared distances [a, b], not below what float64 holds of them."""
    size_a, size_b = (a * a).sum(1)[:, None], (b * b).sum(1)
    squares: Floats = size_a - 2 * a @ b.T + size_b - 1e-14 * (size_a + size_b)
    return np.maximum(squares, 0.0)


def _irregular(a: Floats, b: Floats, moving: Indices) -> Indices | None:
    """The slice of the reference nearest to each that moved; None unless that is one to one."""
    nearest = np.concatenate(
        [_distances(a[rows], b[moving]).argmin(1) for rows in np.array_split(moving, len(moving) // 512 + 1)]
    )
    return moving[nearest] if len(np.unique(nearest)) == len(nearest) else None


def _irregular_words(name: str, moving: Indices, order: Indices) -> str:
    if len(moving) == SWAP:
        return f"{name} {moving[0]} and {moving[1]} are exchanged"
    first = ", ".join(f"{i} holds {order[i]}" for i in moving[:TOLD])
    return f"{name} are permuted ({len(moving)} of {len(order)} moved: {first}{', …' if len(moving) > TOLD else ''})"


def _listed_order(order: Indices) -> list[int] | str:
    return [int(i) for i in order] if len(order) <= LISTED else f"{len(order)} indices"


def permutes_tokens(match: Match) -> bool:
    """Whether tokens found in the reference are its own wrong ones in another order."""
    return match.name == "the reference" and len(match.tokens) > 1 and set(match.tokens) == set(match.sources)


def token_order(match: Match, tokens: int) -> str:
    """The order that tokens are in, in words."""
    order = np.arange(tokens)
    order[list(match.tokens)] = match.sources
    known = {int(t): order[t : t + 1] for t in range(tokens)}
    regular = next((says for says, _ in orders(tokens, known)), None)
    return f"tokens are {regular}" if regular else _irregular_words("tokens", np.array(match.tokens), order)


def _listed(indices: Sequence[int]) -> str:
    """Runs of indices, never as ``all but``."""
    return spans(sorted(set(indices)), max(indices) + MISSING + 2)
