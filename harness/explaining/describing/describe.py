"""Describing an error that no hypothesis explains: by what rule, if any, the candidate's values follow the reference's.

What predicts the candidate's values comes first, simple rules before those with more freedom, and is claimed only where
it leaves what rounding may leave or a hundredth of the error. Then comes what characterises the error, and where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.describing.compared import SHARE, Compared, Floats, Mask, compared, left, widened
from firstdiff.explaining.describing.finding import Finding, counted, large, some, subject
from firstdiff.explaining.describing.fits import WHOLE, fitted, groupings
from firstdiff.explaining.describing.matching import Match, elsewhere
from firstdiff.explaining.describing.not_finite import F16_MOST, beyond_f16, not_finite
from firstdiff.explaining.describing.places import growth, norms_kept, subset, unlike
from firstdiff.explaining.describing.regularity import shortest
from firstdiff.explaining.describing.reordering import permutes_tokens, reordered, token_order

__all__ = ["Finding", "describe"]

Named = Iterable[tuple[str, npt.NDArray[Any]]]

MOST = 5  # findings: what comes after says the same again

PARTIAL = 0.1
"""Least share of the error that a finding about some of the wrong values must account for."""

PILED = 4
"""Values at one bound from which it is a clip. Among 60,000 values two lie as near to the largest by chance as float16
rounds."""


def describe(
    candidate: npt.NDArray[np.floating],
    reference: npt.NDArray[np.floating],
    *,
    axes: tuple[str, ...],
    floor: float,
    seen: Mask | None = None,
    inputs: Sequence[npt.NDArray[Any]] = (),
    others: Named = (),
    heads: int = 0,
) -> tuple[Finding, ...]:
    """Describe how a candidate's tensor is wrong, the most useful finding first.

    Parameters
    ----------
    candidate, reference
        Same shape.
    axes
        Names of their axes: see :func:`firstdiff.dumps.points.axes_of`.
    floor
        Relative error of a token up to which a correct engine's rounding goes.
    seen
        Entries that count, broadcastable to the shape.
    inputs
        Of the operation; those that are no floating-point numbers are passed over, and the others counted from 0.
    others
        Names and values of other recorded tensors. Leave out the site itself, copies of it (``k_cache`` beside
        ``Kcur_rope``) and what may be one (``Qcur_rope`` beside ``Qcur``): that a wrong tensor equals its copy says
        nothing. They are asked for one by one, and not at all where a simpler rule holds.
    heads
        How many heads lie side by side along the last axis, so that they are named; 0 where none do.

    Returns
    -------
    tuple of Finding
        At most five; none where the candidate is at the floor.
    """
    c, r = widened(candidate), widened(reference)
    floats = [a for a in map(np.atleast_1d, inputs) if np.issubdtype(a.dtype, np.floating)]
    named = [("its input" if len(floats) == 1 else f"its input {i}", a) for i, a in enumerate(floats)]
    x = replace(compared(c, r, axes, floor, seen), heads=heads)
    found = list(_not_finite(c, r, axes, seen, named))
    if (x.errors <= floor).all():
        return tuple(found)
    own = ((f"its own {name.removeprefix('its ')}", a) for name, a in named)
    rules = list(_rules(x, chain(others, own)))
    found += rules
    if not any(_accounts(finding) for finding in rules):
        found += chain(norms_kept(x), subset(x), growth(x), unlike(x))
    return tuple(found[:MOST])


def _accounts(finding: Finding) -> bool:
    return finding.share >= SHARE


def _rules(x: Compared, others: Named) -> Iterator[Finding]:
    """Findings that predict values, the simplest rule first, up to the first that accounts for the error."""
    part = x.part()
    found = chain(
        _zeros(x),
        _signs(x, part),
        fitted(x, part, [WHOLE]),
        _clipped(x),
        _elsewhere(x, others),
        _reordered(x),
        fitted(x, part, groupings(x)),
    )
    for finding in found:
        yield finding
        if _accounts(finding):
            return


def _not_finite(
    candidate: npt.NDArray[Any],
    reference: npt.NDArray[Any],
    axes: tuple[str, ...],
    seen: Mask | None,
    inputs: Named,
) -> Iterator[Finding]:
    """NaN and infinities, and whether they are what float16 does not hold."""
    broken = not_finite(candidate, reference, axes, seen, inputs)
    if broken is None:
        return
    if (count := beyond_f16(candidate, reference, seen)) is not None:
        says = f"infinite wherever the reference is beyond float16's 65504 ({counted(count, 'value')})"
        yield Finding("saturated", says, {"bounds": [F16_MOST], "values": count}, 1.0)
    yield Finding("not-finite", broken.says, broken.values, 1.0)


def _zeros(x: Compared) -> Iterator[Finding]:
    """Exact zeros where the reference has none."""
    relevant = large(x)
    zero = relevant & (x.candidate == 0)
    if not zero.any():
        return
    rest = left(x, np.where(zero, 0.0, x.reference))
    where, count = subject(x, zero, relevant), int(zero.sum())
    if rest.share < PARTIAL or (where is None and not rest.holds):
        return
    says = f"{(where or some(count, int(x.counts.sum()))).are} zero"
    if where is None and (zero == (relevant & (x.reference < 0))).all():
        says = "zero wherever the reference is negative"
    yield Finding("zeros", says, {"values": count}, rest.share)


def _signs(x: Compared, part: Compared) -> Iterator[Finding]:
    """Values of the right magnitude and the other sign."""
    if not left(part, _flipped(part)).holds or not (rest := left(x, _flipped(x))).holds:
        return
    relevant = large(x)
    flipped = relevant & (x.candidate * x.reference < 0)
    who = subject(x, flipped, relevant) or some(int(flipped.sum()), int(x.counts.sum()))
    yield Finding("sign", f"{who.have} the wrong sign", {"values": int(flipped.sum())}, rest.share)


def _flipped(x: Compared) -> Floats:
    return np.where(x.candidate * x.reference < 0, -x.reference, x.reference)


def _clipped(x: Compared) -> Iterator[Finding]:
    """Values that pile up at a bound beyond which the reference goes, the rest being right."""
    near = x.floor * float(np.abs(x.candidate).max()) + 1e-12
    low, high = float(x.candidate[x.counts].min()), float(x.candidate[x.counts].max())
    if high - low <= near and x.counts.sum() >= PILED:
        says = f"every value is {shortest(low, x.floor)}"
        yield Finding("saturated", says, {"bounds": [low], "values": int(x.counts.sum())}, 1.0)
        return
    sides = {
        low: (x.candidate <= low + near) & (x.reference < low - near),
        high: (x.candidate >= high - near) & (x.reference > high + near),
    }
    piled = {bound: x.counts & mask for bound, mask in sides.items() if (x.counts & mask).sum() >= PILED}
    if not piled:
        return
    stuck: Mask = np.logical_or.reduce(list(piled.values()))
    rest = left(x, np.where(stuck, x.candidate, x.reference))
    if not rest.holds:
        return
    bounds, count, beyond = list(piled), int(stuck.sum()), float(np.abs(x.reference[stuck]).max())
    both = len(bounds) > 1 and abs(low + high) <= near
    said = f"±{shortest(high, x.floor)}" if both else " and ".join(shortest(b, x.floor) for b in bounds)
    says = f"clipped at {said}, where the reference goes to {beyond:.6g} in magnitude ({counted(count, 'value')})"
    yield Finding("saturated", says, {"bounds": bounds, "values": count}, rest.share)


def _elsewhere(x: Compared, others: Named) -> Iterator[Finding]:
    """Equality with another tensor, another row of one, or the reference's own rows in another order."""
    match = elsewhere(x, others)
    if match is None or match.share < PARTIAL:
        return
    yield (
        _permuted(x, match)
        if isinstance(match, Match) and permutes_tokens(match)
        else Finding("equals-other", match.says, match.values, match.share)
    )


def _permuted(x: Compared, match: Match) -> Finding:
    axis = {"axis": x.axes[x.token_axis]}
    return Finding("permuted", token_order(match, len(x.errors)), axis | match.values, match.share)


def _reordered(x: Compared) -> Iterator[Finding]:
    found = reordered(x)
    if found is not None:
        says, values, rest = found
        yield Finding("permuted", says, values, rest.share)
