"""One thing that is true of how a candidate's tensor is wrong, and the words for which of its values are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from firstdiff.explaining.describing.compared import Compared, Mask
from firstdiff.explaining.describing.regularity import named
from firstdiff.judging.measure import LOCATED

NEARLY = 0.9
"""Least share of a head's dimensions that are wrong for the head to be: of one token some lie near by chance."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is true of how a candidate's tensor is wrong.

    Parameters
    ----------
    id
        ``not-finite``, ``saturated``, ``zeros``, ``constant-factor``, ``constant-offset``, ``sign``, ``equals-other``,
        ``permuted``, ``norms-kept``, ``subset``, ``grows-with-position`` or ``unlike``.
    says
        A plain fragment of a sentence.
    values
        The numbers behind it, for JSON.
    share
        The part of the squared error (every token scaled to one norm) that it accounts for: by predicting the values,
        or, of a ``subset``, by saying where they are. 0 for what only characterises the error.
    """

    id: str
    says: str
    values: dict[str, Any]
    share: float


@dataclass(frozen=True, slots=True)
class Subject:
    """Some of a tensor's values, as a sentence begins with them: ``heads 3, 5 of tokens 4-9``.

    `tokens` says that the words are those of tokens.
    """

    words: str
    many: bool
    tokens: bool = False

    @property
    def are(self) -> str:
        """With its verb."""
        return f"{self.words} {'are' if self.many else 'is'}"

    @property
    def have(self) -> str:
        """With its verb."""
        return f"{self.words} {'have' if self.many else 'has'}"


def subject(x: Compared, mask: Mask, relevant: Mask) -> Subject | None:
    """Name the values of a mask that are all relevant ones of some slices; None where they are not.

    The masks may have length 1 along axes that do not matter.
    """
    reached = reach(mask, relevant)
    if (within(relevant, reached) != (mask & relevant)).any():
        return None
    parts = []
    for i, here in reached.items():
        indices = np.flatnonzero(here)
        parts.append(Subject(named(x.axes[i], indices, x.lengths[x.axes[i]]), len(indices) > 1, i == x.token_axis))
    return joined(parts) if parts else Subject("every value", many=False)


def reach(mask: Mask, relevant: Mask) -> dict[int, Mask]:
    """Which indices a mask reaches, along the axes where these are not all relevant ones [axis length].

    An axis is left out where the others say the same: what tokens 0-3 see are keys 0-3.
    """
    found: dict[int, Mask] = {}
    for i in range(mask.ndim):
        rest = tuple(j for j in range(mask.ndim) if j != i)
        here: Mask = np.asarray(mask.any(rest))
        if here.sum() < relevant.any(rest).sum():
            found[i] = here
    for i in reversed(list(found)):
        others = {j: here for j, here in found.items() if j != i}
        if others and (within(relevant, others) == within(relevant, found)).all():
            found = others
    return found


def within(relevant: Mask, reached: dict[int, Mask]) -> Mask:
    """The relevant entries at the indices that are given for some axes."""
    for i, here in reached.items():
        relevant = relevant & np.expand_dims(here, tuple(j for j in range(relevant.ndim) if j != i))
    return relevant


def by_head(x: Compared) -> Compared:
    """Lay heads that lie side by side along an axis of their own, where whole heads are wrong; else as it is."""
    if not x.heads or x.row % x.heads:
        return x
    shape = (*x.reference.shape[:-1], x.heads, -1)
    candidate, reference, counts = (a.reshape(shape) for a in (x.candidate, x.reference, x.counts))
    axes = (*x.axes[:-1], "head", "head_dim")
    cut = replace(
        x, candidate=candidate, reference=reference, counts=counts, axes=axes, scale=x.scale[..., None], heads=0
    )
    wrong = (np.abs(candidate - reference) / cut.rms > LOCATED * x.floor) & counts
    share = wrong.any(tuple(range(len(axes) - 2))).mean(-1)  # [head]
    return cut if ((share == 0) | (share >= NEARLY)).all() and (share == 0).any() else x


def joined(parts: Sequence[Subject]) -> Subject:
    """Name slices of several axes, tokens last: ``head 3 of tokens 4-9``."""
    ordered = sorted(parts, key=lambda part: part.tokens)
    return Subject(" of ".join(part.words for part in ordered), ordered[0].many)


def some(count: int, total: int) -> Subject:
    """Name values by their number alone."""
    return Subject(f"{count:,} of {counted(total, 'value')}", count > 1)


def counted(count: int, noun: str) -> str:
    """A number of things: ``1 value``, ``2,304 values``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def large(x: Compared) -> Mask:
    """Entries whose reference is beyond what rounding makes of zero."""
    found: Mask = x.counts & (np.abs(x.reference) > LOCATED * x.floor * x.rms)
    return found
