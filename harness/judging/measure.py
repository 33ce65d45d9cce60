"""Measuring how two recordings of one tensor differ: how much, where, and the worst element."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import token_axis
from firstdiff.judging.rows import Mask, shown
from firstdiff.model.workers import shared_out
from firstdiff.verdict import Element
from firstdiff.verdict.ranges import spans

Real = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

LOCATED = 10.0
"""An element counts as wrong in :func:`locate` from this many floors on, relative to its row's rms. Rounding is near
to normally distributed with a root mean square of a fifth of the floor, so correct elements stay below half of it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a candidate's tensor differs from the reference's.

    Parameters
    ----------
    error
        The largest relative error of a token: the norm of its difference over the norm of its reference values
        (or of the terms they are the sum of, if these are larger). Infinite where the candidate has NaN or infinity and
        the reference a number.
    worst
        The worst element; where numbers turn NaN or infinite, the first of these.
    not_finite
        How many of the candidate's elements are NaN or infinite where the reference is a number.
    """

    error: float
    worst: Element | None
    not_finite: int


AT_ONCE = 1 << 18
"""Elements that are compared at a time, as float64 a few megabytes: a cache holds them."""

SMALL = 1e-10
"""Norm of a token from which float32 holds the squares of errors of 1e-7."""


def measure(
    candidate: Real,
    reference: Real,
    *,
    axes: tuple[str, ...],
    floor: float,
    seen: Mask | None = None,
    terms: Callable[[], Real | None] = lambda: None,
) -> Difference:
    """Compare a candidate's tensor with the reference's, token by token.

    Tokens are measured apart, because some (the first, above all) can be a thousand times larger than the others and
    would hide an error in these.

    Parameters
    ----------
    candidate, reference
        Same shape.
    axes
        Names of their axes: see :func:`firstdiff.dumps.points.axes_of`.
    floor
        The error up to which `terms` need not be asked for.
    seen
        Entries that count, broadcastable to the shape: attention hides the others, or they are not recorded.
    terms
        Gives the size of the terms that each reference value is a sum of, same shape: see :mod:`firstdiff.model.terms`.
    """
    rows = shown(seen)
    if rows is not None:
        found = measure(candidate[rows], reference[rows], axes=axes, floor=floor, terms=lambda: _of_rows(terms(), rows))
        return found if found.worst is None else replace(found, worst=_moved_to(rows, found.worst))
    rest = _all_but(axes, token_axis(axes))
    quick = _quick(candidate, reference, rest, seen)
    if quick is not None and quick <= floor:
        return Difference(quick, None, 0)
    c, r = np.asarray(candidate, np.float64), np.asarray(reference, np.float64)
    judged = np.isfinite(r) if seen is None else np.isfinite(r) & seen
    broken = judged & ~np.isfinite(c)
    if broken.any():
        first = _first(broken, axes)
        return Difference(np.inf, Element(first, float(c[first]), float(r[first])), int(broken.sum()))
    delta = np.where(judged, c - r, 0.0)
    delta[np.abs(delta) < SMALLEST_F32] = 0.0
    if not delta.any():
        return Difference(0.0, None, 0)
    norm = _norm(delta, rest)  # [token]
    size = _norm(np.where(judged, r, 0.0), rest)
    error = _ratio(norm, size)
    if error.max() > floor and (larger := terms()) is not None:
        size = np.maximum(size, _norm(np.where(judged, larger, 0.0), rest))
        error = _ratio(norm, size)
    scaled = np.abs(delta) / np.where(size > 0, size, 1.0).reshape(_along(axes, size.shape[0]))
    index = tuple(int(i) for i in np.unravel_index(int(scaled.argmax()), scaled.shape))
    return Difference(float(error.max()), Element(index, float(c[index]), float(r[index])), 0)


def _of_rows(x: Real | None, rows: Indices) -> Real | None:
    return None if x is None else x[rows]


def _moved_to(rows: Indices, worst: Element) -> Element:
    return replace(worst, index=(int(rows[worst.index[0]]), *worst.index[1:]))


def holds_numbers(x: Real) -> bool:
    """Whether a tensor holds any number but zeros: what is zero everywhere, or NaN, agrees with too much to tell."""
    return bool((np.isfinite(x) & (x != 0)).any())


def relative(candidate: Real, reference: Real, seen: Mask | None = None) -> float:
    """The norm of the difference over the norm of the reference, all tokens together; infinite if not finite."""
    step = max(1, AT_ONCE * len(reference) // max(1, reference.size))
    blocks = [slice(start, start + step) for start in range(0, len(reference), step)]
    squares = np.zeros((len(blocks), 2))
    shown = None if seen is None else np.broadcast_to(seen, reference.shape)

    def add(some: Sequence[int]) -> None:
        for i in some:
            c, r = (np.asarray(x[blocks[i]], np.float64) for x in (candidate, reference))
            if shown is not None:
                c, r = np.where(shown[blocks[i]], c, 0.0), np.where(shown[blocks[i]], r, 0.0)
            finite = np.isfinite(c).all()
            squares[i] = np.vdot(c - r, c - r) if finite else np.inf, np.vdot(r, r)

    shared_out(add, range(len(blocks)))
    difference, size = np.sqrt(squares.sum(0))
    if not np.isfinite(difference):
        return float("inf")
    return float(difference / size) if size else (float("inf") if difference else 0.0)


def locate(
    candidate: Real, reference: Real, *, axes: tuple[str, ...], floor: float, seen: Mask | None = None
) -> dict[str, str]:
    """Say along each axis where the candidate is wrong: ``{"token": "all but 0", "head": "3-5", "head_dim": "all"}``.

    Of a tensor of which one token alone is recorded, that is said.
    """
    c, r = np.asarray(candidate, np.float64), np.asarray(reference, np.float64)
    judged = np.isfinite(r) if seen is None else np.isfinite(r) & seen
    delta = np.where(judged, c - r, 0.0)
    delta[np.isnan(delta)] = np.inf
    rest = _all_but(axes, token_axis(axes))
    count = np.maximum(np.broadcast_to(judged, r.shape).sum(rest), 1)
    rms = _norm(np.where(judged, r, 0.0), rest) / np.sqrt(count)
    wrong = np.abs(delta) > LOCATED * floor * rms.reshape(_along(axes, len(rms)))
    if not wrong.any():
        wrong = np.abs(delta) >= np.abs(delta).max()
    where = {name: spans(np.flatnonzero(wrong.any(_all_but(axes, i))), r.shape[i]) for i, name in enumerate(axes)}
    rows = shown(seen)
    if rows is not None and len(rows) == 1:
        where[axes[token_axis(axes)]] = f"{rows[0]} (the only one recorded)"
    return where


def _quick(candidate: Real, reference: Real, rest: tuple[int, ...], seen: Mask | None) -> float | None:
    """The error in float32, for what nearly always agrees; None where float32 does not do to measure it."""
    if candidate.dtype != np.float32 or reference.dtype != np.float32:
        return None
    kept = next(i for i in range(candidate.ndim) if i not in rest)
    size, norm = np.zeros((2, candidate.shape[kept]), np.float32)
    shown = None if seen is None else np.broadcast_to(seen, reference.shape)

    def add(parts: Sequence[tuple[slice, ...]]) -> None:
        for part in parts:
            c, r = candidate[part], reference[part]
            if shown is not None:
                c, r = np.where(shown[part], c, 0), np.where(shown[part], r, 0)
            size[part[kept]], norm[part[kept]] = _norm(r, rest), _norm(c - r, rest)

    with np.errstate(over="ignore", invalid="ignore"):
        shared_out(add, _along_axis(candidate.shape, kept))
    if not (np.isfinite(norm).all() and size.min() > SMALL):
        return None
    return float((norm / size).max())


def _along_axis(shape: tuple[int, ...], axis: int) -> list[tuple[slice, ...]]:
    """Divide a tensor along an axis into parts of so many elements as are compared at a time."""
    rest = max(1, math.prod(shape) // max(1, shape[axis]))
    step = max(1, AT_ONCE // rest)
    before = (slice(None),) * axis
    return [(*before, slice(start, start + step)) for start in range(0, shape[axis], step)]


def _norm(x: Real, axis: tuple[int, ...]) -> Real:
    """Euclidean norm over some axes, in the dtype of `x`."""
    kept = next(i for i in range(x.ndim) if i not in axis)
    letters = "abcd"[: x.ndim]
    squares: Real = np.einsum(f"{letters},{letters}->{letters[kept]}", x, x)
    return np.sqrt(squares)


def _all_but(axes: tuple[str, ...], axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(len(axes)) if i != axis)


def _ratio(norm: Real, size: Real) -> Real:
    """Error of each token; infinite where something stands in place of exact zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norm > 0, norm / size, 0.0)


def _along(axes: tuple[str, ...], tokens: int) -> tuple[int, ...]:
    return tuple(tokens if i == token_axis(axes) else 1 for i in range(len(axes)))


def _first(broken: Mask, axes: tuple[str, ...]) -> tuple[int, ...]:
    """Index of the first true element, by token before all else."""
    token = token_axis(axes)
    index = np.argwhere(np.moveaxis(broken, token, 0))[0]
    ordered = np.insert(index[1:], token, index[0])
    return tuple(int(i) for i in ordered)


SMALLEST_F32 = 2.0**-126
"""The smallest normal number: engines may take for 0 what is less."""

SMALLEST_F16, ULP_F16 = 2.0**-14, 2.0**-25
"""The smallest normal number, and half the spacing of the numbers below it."""

LARGEST = {"f16": (65504.0, 2.0**-9), "bf16": (2.0**127 * (2 - 2.0**-7), 2.0**-6)}
"""The largest number of a dtype, and how far below it a computed value may be that was infinity when stored: four
roundings."""


def overflowing(recorded: Real, computed: Real, kinds: Iterable[str | None], floor: float) -> Real:
    """Values that are infinite in a dtype of 16 bits as computed, where that is as good as its largest number.

    Which side of it a sum falls on is rounding's. `floor` is by how much what was computed may be off for other
    reasons, relative to itself.
    """
    infinite = np.isinf(recorded)
    for kind in LARGEST.keys() & {*kinds} if infinite.any() else ():
        largest, near = LARGEST[kind]
        with np.errstate(all="ignore"):
            at_end = (
                infinite & (np.abs(computed) > largest * (1 - near - floor)) & (np.sign(recorded) == np.sign(computed))
            )
        recorded = np.where(at_end, computed, recorded)
    return recorded


def within_f16(recorded: Real, computed: Real, floor: float) -> Real:
    """Values below f16's normal numbers as computed, where the recorded ones are f16's of them.

    `floor` is by how much what was computed may be off for other reasons, relative to itself.
    """
    with np.errstate(all="ignore"):
        below = (np.abs(computed) < SMALLEST_F16) & (np.abs(recorded - computed) <= ULP_F16 + floor * np.abs(computed))
    return np.where(below, computed, recorded)


def stands_in_f16(recorded: Real, floor: float) -> bool:
    """Whether :func:`within_f16` takes recorded values as they are, whatever was computed.

    It may change a row [..., feature] by as little as float32 rounds it by.
    """
    tiny = np.abs(recorded) < 2 * SMALLEST_F16
    most = np.sqrt(tiny.sum(-1)) * (ULP_F16 + floor * SMALLEST_F16)
    with np.errstate(all="ignore"):
        size = np.linalg.norm(np.asarray(recorded, np.float64), axis=-1)
    return bool(np.isfinite(size).all() and (most <= np.finfo(np.float32).eps / 2 * size).all())
