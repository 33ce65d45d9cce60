"""Where an error is that no rule predicts, and what characterises it."""

from __future__ import annotations

from collections.abc import Iterator
from math import lgamma, log
from typing import Any

import numpy as np

from firstdiff.explaining.describing.compared import TINY, Compared, Floats, Mask, cosine, left
from firstdiff.explaining.describing.finding import Finding, Subject, by_head, joined, reach, within
from firstdiff.explaining.describing.regularity import named
from firstdiff.judging.measure import LOCATED

LONG, RANKED, DEVIATIONS, RATIO = 8, 0.8, 2.6, 3.0
"""An error grows with position where, over at least 8 tokens, its rank correlation with position is 0.8 and 2.6
standard deviations of what chance makes of it, and the last quarter's is three times the first's."""

CHANCE = 1e-3
"""Probability from which on it may be chance that slices are right: errors of a wide distribution lie within a bound t
of zero with a probability of about t over their root mean square."""

KEPT, VECTORS = 100.0, 8
"""Norms are kept by rule where at least 8 vectors of 4 or more are off by 100 floors and all keep theirs: an error in a
random direction of 1,536 numbers changes a norm by 2.5 floors then, and each stays within one floor three times in
ten."""

LEAST_DIMS = 4

NEAR = 0.9  # cosine from which two tensors are called near

SHOWN = 64  # indices in a finding's values


def norms_kept(x: Compared) -> Iterator[Finding]:
    """Each vector along the last axis keeps its norm, as under a rotation."""
    if x.axes[-1] not in ("feature", "head_dim") or x.reference.shape[-1] < LEAST_DIMS:
        return
    c, r = x.candidate * x.scale, x.reference * x.scale
    error, size_c, size_r = (np.sqrt(np.einsum("...d,...d->...", v, v)) for v in (c - r, c, r))
    wrong = int((error > KEPT * x.floor).sum())
    if wrong < VECTORS or (np.abs(size_c - size_r) > x.floor).any():
        return
    of = " of each ".join(reversed(x.axes[:-1]))
    yield Finding(
        "norms-kept", f"each {of} keeps its norm, as under a rotation or permutation", {"vectors": wrong}, 0.0
    )


def subset(x: Compared) -> Iterator[Finding]:
    """Along each axis the indices that are wrong, where the rest is at the floor."""
    x = by_head(x)
    delta = np.abs(x.candidate - x.reference) / x.rms
    wrong = (delta > LOCATED * x.floor) & (delta > x.floor * np.abs(x.reference) / x.rms)
    reached = {i: here for i, here in reach(wrong, x.counts).items() if _regular(x, delta, i, here)}
    if not reached or not (rest := left(x, np.where(within(x.counts, reached), x.candidate, x.reference))).holds:
        return
    parts, values = [], {}
    for i, here in reached.items():
        name, indices = x.axes[i], np.flatnonzero(here)
        parts.append(Subject(named(name, indices, len(here)), len(indices) > 1, i == x.token_axis))
        values[name] = [int(j) for j in indices[:SHOWN]]
    where = joined(parts)
    only = "" if where.words.startswith("all ") else "only "
    yield Finding("subset", f"{only}{where.are} wrong, the rest right", values, rest.share)


def _regular(x: Compared, delta: Floats, axis: int, wrong: Mask) -> bool:
    """Whether the wrong indices along an axis can be told, and are not all but those that chance left right."""
    indices, n = np.flatnonzero(wrong), len(wrong)
    counts = x.counts.take(indices, axis)
    shown = int(x.counts.any(tuple(i for i in range(delta.ndim) if i != axis)).sum())
    errors = delta.take(indices, axis)[counts]
    if not len(indices) or _by_chance(errors, shown - len(indices), shown, LOCATED * x.floor):
        return False
    return "…" not in named(x.axes[axis], indices, n) or 2 * len(indices) <= n


def _by_chance(errors: Floats, right: int, slices: int, bound: float) -> bool:
    """Whether so many of the slices may lie within the bound by accident, if all are as wrong as the wrong ones."""
    within = min(1.0, bound / float(np.sqrt(np.square(errors).mean())))
    ways = lgamma(slices + 1) - lgamma(right + 1) - lgamma(slices - right + 1)
    numbers = errors.size / (slices - right) * right
    return ways + numbers * log(max(within, TINY)) > log(CHANCE)


def growth(x: Compared) -> Iterator[Finding]:
    """Errors of the wrong tokens that rise with their positions."""
    errors = x.errors
    at = np.flatnonzero(errors > x.floor)
    if len(at) < LONG:
        return
    e, quarter = errors[at], len(at) // 4
    first, last = float(e[:quarter].mean()), float(e[-quarter:].mean())
    ranks = np.argsort(np.argsort(e, kind="stable"), kind="stable")
    rank = float(np.corrcoef(ranks, np.arange(len(e)))[0, 1])
    if rank < RANKED or rank * np.sqrt(len(e) - 1) < DEVIATIONS or last < RATIO * first:
        return
    says = f"the error grows with position, from {e[0]:.2g} at token {at[0]} to {e[-1]:.2g} at token {at[-1]}"
    if errors[0] <= x.floor:
        says += "; token 0 is right"
    values: dict[str, Any] = {"first": first, "last": last, "ratio": last / first, "token_0_right": bool(at[0] > 0)}
    yield Finding("grows-with-position", says, values, 0.0)


def unlike(x: Compared) -> Iterator[Finding]:
    """How far the wrong tokens are from the reference in direction and size."""
    y = x.take(x.token_axis, np.flatnonzero(x.errors > x.floor))
    c, r = (float(np.sqrt(np.square(v * y.scale).sum())) for v in (y.candidate, y.reference))
    angle = cosine(y)
    if not r:
        yield Finding("unlike", "not zero where the reference is", {"error": float(x.errors.max())}, 0.0)
        return
    word = "near" if angle >= NEAR else "unlike"
    says = f"{word} the reference (cosine {angle:.4g}, norm {c / r:.4g} times the expected)"
    yield Finding("unlike", says, {"cosine": angle, "norm": c / r, "error": float(x.errors.max())}, 0.0)
