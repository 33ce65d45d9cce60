"""The reference's values found in another order: axes exchanged, or tokens, heads or features permuted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from firstdiff.dumps.points import plural
from firstdiff.explaining.describing.compared import Compared, Floats, Indices, Left, left
from firstdiff.explaining.describing.matching import LEAST, OWN, SLICES, Match
from firstdiff.explaining.describing.regularity import divisors, orders
from firstdiff.judging.measure import LOCATED

PROBES = 24
"""Slices looked for before all are: if one of these is nowhere, there is no permutation."""

MOST_SLICES = 4096
"""Up to so many slices, irregular orders are found too: that takes a matrix of their distances."""

NEARLY = 0.1
"""The share of the error up to which some numbers are as an order has them, so that all are looked at."""

CHUNK = 512  # slices whose distances to all others are held at a time

TOLD, LISTED = 3, 256  # moved slices in a sentence, and in a finding's values

SWAP = 2  # slices exchanged


def reordered(x: Compared) -> tuple[str, dict[str, Any], Left] | None:
    """Find the reference's values in another order: axes exchanged, or features or heads permuted."""
    for says, values, predicted in _orders(x):
        rest = left(x, predicted)
        if rest.holds:
            return says, values, rest
    return None


def _orders(x: Compared) -> Iterator[tuple[str, dict[str, Any], Floats]]:
    yield from _transposed(x)
    for name in x.axes:
        if name not in ("token", "query", "key") and x.lengths[name] > 1:
            yield from _permuted(x, name)


def _transposed(x: Compared) -> Iterator[tuple[str, dict[str, Any], Floats]]:
    """The reference's buffer with two axes in the other order, also of heads that are merged."""
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
        if np.sqrt(np.square(delta).mean() * x.row) <= max(LOCATED * x.floor, NEARLY * float(x.errors.max())):
            yield says, {"shape": list(turned)}, flat.reshape(split).transpose(order).reshape(shape)


def _splits(x: Compared) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """The shape of a buffer as three axes, and the order in which they may lie in place of it."""
    shape = x.reference.shape
    if len(shape) > 2:  # noqa: PLR2004 - [token, feature]
        for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
            says = f"values lie in the order [{', '.join(x.axes[i] for i in order)}] in place of [{', '.join(x.axes)}]"
            yield says, shape, order
        return
    for heads in divisors(shape[1])[1:]:
        dim = shape[1] // heads
        says = f"tokens and heads are exchanged, taking {heads} heads of head_dim {dim}"
        if dim == 1:
            says = "values lie in the order [feature, token] in place of [token, feature]"
        yield says, (shape[0], heads, dim), (1, 0, 2)


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
    if not len(moving):
        return
    probes = moving[np.unique(np.linspace(0, len(moving) - 1, PROBES).astype(np.intp))]
    near = _distances(a[probes], b) <= (allowed[probes] ** 2)[:, None]
    if not near.any(1).all():
        return
    known = {int(p): np.flatnonzero(near[i]) for i, p in enumerate(probes)}
    for says, order in orders(n, known):
        yield f"{plural(name)} are {says}", {"axis": name, "order": says}, x.reference.take(order, axis)
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
    """The slice of the reference nearest to each that moved; None if such short slices are not one to one."""
    nearest: Indices = np.concatenate(
        [_distances(a[rows], b).argmin(1) for rows in np.array_split(moving, len(moving) // CHUNK + 1)]
    )
    return nearest if a.shape[1] >= LEAST or set(nearest) == set(moving) else None


def _irregular_words(name: str, moving: Indices, order: Indices) -> str:
    sources = order[moving]
    if len(moving) == SWAP and set(sources) == set(moving):
        return f"{plural(name)} {moving[0]} and {moving[1]} are exchanged"
    first = ", ".join(f"{i} holds {order[i]}" for i in moving[:TOLD])
    how = "permuted" if set(sources) == set(moving) else "taken from others"
    return f"{plural(name)} are {how} ({len(moving)} of {len(order)}: {first}{', …' if len(moving) > TOLD else ''})"


def _listed_order(order: Indices) -> list[int] | str:
    return [int(i) for i in order] if len(order) <= LISTED else f"{len(order)} indices"


def permutes_tokens(match: Match) -> bool:
    """Whether tokens found in the reference are its own wrong ones in another order."""
    return match.name == OWN and len(match.tokens) > 1 and set(match.tokens) == set(match.sources)


def token_order(match: Match, tokens: int) -> str:
    """The order that tokens are in, in words."""
    order = np.arange(tokens)
    order[list(match.tokens)] = match.sources
    known = {int(t): order[t : t + 1] for t in range(tokens)}
    regular = next((says for says, _ in orders(tokens, known)), None)
    return f"tokens are {regular}" if regular else _irregular_words("token", np.array(match.tokens), order)
