"""Regular numbers, sets of indices and orders, put in words: ``sqrt(64 features)``, ``every 4th``, ``reversed``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from firstdiff.dumps.points import plural
from firstdiff.explaining.describing.compared import Indices, Mask
from firstdiff.verdict.ranges import spans

DIGITS = 6
FITTED = 0.2  # of the floor: what a fitted number is off by, as rounding is at random
PAIR = 2
FORM = 1e-3  # the widest tolerance at which some 50 forms over five decades are met by chance once in a hundred times
ORDINALS = {2: "2nd", 3: "3rd"}


def numbered(value: float, lengths: Mapping[str, int], tolerance: float) -> str:
    """A factor for people, with the form it has if that is a well-known one: ``0.125 (1 / sqrt(64 features))``."""
    plain = shortest(value, tolerance)
    allowed = min(max(tolerance, 1e-6), FORM)
    for form, says in _forms(lengths):
        if abs(abs(value) - form) <= allowed * form and says != plain.removeprefix("-"):
            return f"{plain} ({'-' if value < 0 else ''}{says})"
    return plain


def shortest(value: float, tolerance: float) -> str:
    """A fitted number with the digits that it is known to: a fit's error is a small part of the tolerance."""
    plain = (f"{float(f'{value:.{digits}g}'):.{DIGITS}g}" for digits in range(1, DIGITS))
    near = (p for p in plain if abs(float(p) - value) <= FITTED * tolerance * abs(value))
    return next(near, f"{value:.{DIGITS}g}")


def _forms(lengths: Mapping[str, int]) -> Iterator[tuple[float, str]]:
    """Factors that bugs are known to make, and how they are written."""
    sizes = {f"{n} {plural(name)}": n for name, n in reversed(list(lengths.items())) if n > 1}
    if {"head", "head_dim"} <= lengths.keys():
        n = lengths["head"] * lengths["head_dim"]
        sizes[f"{n} {plural('feature')}"] = n
    for says, n in sizes.items():
        yield math.sqrt(n), f"sqrt({says})"
        yield 1 / math.sqrt(n), f"1 / sqrt({says})"
    for says, n in sizes.items():
        yield n, says
        yield 1 / n, f"1 / {says}"
    for n in (2, 3):
        yield math.sqrt(n), f"sqrt({n})"
        yield 1 / math.sqrt(n), f"1 / sqrt({n})"
    yield math.log(2), "ln 2"
    yield 1 / math.log(2), "1 / ln 2"
    for n in (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 32, 64, 127, 128, 255, 256, 512, 1024):
        yield n, str(n)
        yield 1 / n, f"1/{n}"


def named(axis: str, indices: Indices, size: int) -> str:
    """A set of indices along an axis: ``head 3``, ``features 4-7``, ``every 4th of the features from 1``."""
    chosen = np.zeros(size, np.bool_)
    chosen[indices] = True
    if len(indices) == 1:
        return f"{axis} {int(indices[0])}"
    many = plural(axis)
    words = spans(indices, size)
    plain = f"all {many} but {words.removeprefix('all but ')}" if words.startswith("all but") else f"{many} {words}"
    return plain if "…" not in plain else _periodic(many, chosen) or plain


def _periodic(many: str, chosen: Mask) -> str | None:
    """What repeats along the axis."""
    for period in divisors(chosen.size):
        first = chosen[:period]
        if 1 < period < chosen.size and (chosen.reshape(-1, period) == first).all():
            within = np.flatnonzero(first)
            if len(within) == 1:
                nth = ORDINALS.get(period, f"{period}th")
                return f"every {nth} of the {many} from {within[0]}"
            return f"{many} {spans(within, period)} of each {period}"
    return None


def divisors(n: int) -> list[int]:
    """All divisors in rising order."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def orders(n: int, moved: Mapping[int, Indices]) -> Iterator[tuple[str, Indices]]:
    """Regular orders of n that agree with what is known of some indices, the simplest ones first.

    Parameters
    ----------
    n
        How many are in order.
    moved
        Indices in the candidate, and the ones in the reference that each may have come from.

    Yields
    ------
    tuple
        The order in words, and for each place the index in the reference that it holds.
    """
    places = np.arange(n)
    for size in reversed(divisors(n)[1:]):
        within = "" if size == n else f" within each {size}"
        for says, order in _orders_of(size, moved):
            if all(p // size * size + order[p % size] in images for p, images in moved.items()):
                yield says + within, places // size * size + order[places % size]


def _orders_of(n: int, moved: Mapping[int, Indices]) -> Iterator[tuple[str, Indices]]:
    """Regular orders of one block of n; of rotations only those that the first known index allows."""
    i = np.arange(n)
    if n == PAIR:
        yield "neighbours exchanged", i[::-1]
        return
    yield "in reverse order", i[::-1]
    place, images = next(iter(moved.items()))
    for k in sorted({int(image - place) % n for image in images if image // n == place // n}):
        yield f"rotated, {k} first", (i + k) % n
    for rows in divisors(n)[1:-1]:
        order = i.reshape(rows, n // rows).T.ravel()
        if rows * PAIR == n:
            yield "the even ones first, then the odd ones (half-split in place of interleaved)", order
        elif rows == PAIR:
            yield "taken from the two halves in turn (interleaved in place of half-split)", order
        else:
            yield f"transposed, [{n // rows}, {rows}] in place of [{rows}, {n // rows}]", order
