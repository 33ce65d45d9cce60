"""In which order the dimensions of the heads of Q and K are: what each result of theirs says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from firstdiff.dumps.points import Kind, kind_of
from firstdiff.model.architecture import Rotation
from firstdiff.model.arithmetic import Array

TELLS = 0.7
"""An order of dimensions is told by a result that leaves less than this share of what the other order leaves. Wrong
orders leave nearly the same."""

VOTERS = (Kind.PRODUCT, Kind.NORM, Kind.ROTATION)
"""Kinds of results that tell the order of dimensions, the one that is believed before the next first."""


@dataclass(frozen=True, slots=True)
class _Vote:
    """What one result leaves if the dimensions are in the reference's order, and in the other one."""

    kind: Kind
    plain: float
    other: float

    @property
    def tells(self) -> bool | None:
        """Whether it is the other order; None where the result does not tell."""
        small, large = sorted((self.plain, self.other))
        return None if not small <= TELLS * large else self.other < self.plain


@dataclass
class Votes:
    """What results say of the order of dimensions.

    Parameters
    ----------
    rotation
        How the model rotates; None where it does not.
    names
        What the manifest says of the tensors' names.
    """

    rotation: Rotation | None
    names: object
    cast: list[_Vote] = field(default_factory=list)

    def hear(
        self,
        point: str,
        best: dict[bool, tuple[float, Array]],
        computed: dict[bool, Array],
        error: Callable[[Array, Array], float | None],
    ) -> None:
        """Let a result say in which order the dimensions are.

        Parameters
        ----------
        point
            The result's.
        best
            What is left of it in the reference's order (False) and in the other (True), with the values read so.
        computed
            What it is computed to be, in each order that its inputs were read in.
        error
            Measures two arrays.
        """
        kind, errors = kind_of(point), {other: left for other, (left, _) in best.items()}
        if kind is Kind.ROTATION and True not in computed and self.rotation is not None:
            # The product was not recorded. Whatever the angles, they leave the norm of each pair as it is.
            kind = Kind.PRODUCT
            pairs = _pair_norms(computed[False], self.rotation.pairing)
            found = {o: error(_pair_norms(x, self.rotation.pairing), pairs) for o, (_, x) in best.items()}
            errors = {o: np.inf if e is None else e for o, e in found.items()}
        if kind in VOTERS and np.isfinite(list(errors.values())).any():
            self.cast.append(_Vote(kind, errors[False], errors[True]))

    @property
    def reordered(self) -> bool:
        """Whether the dimensions of the heads of Q and K are in the other order."""
        for kind in VOTERS:
            told = Counter(vote.tells for vote in self.cast if vote.kind is kind and vote.tells is not None)
            if told[True] != told[False]:
                return told[True] > told[False]
        return self._as_named()

    def _as_named(self) -> bool:
        """What the names of the tensors say: those of Hugging Face's modules have its order, as a rule."""
        theirs = self.names == "hf" or (isinstance(self.names, dict) and any("q_proj" in name for name in self.names))
        return bool(theirs and self.cast and self.rotation is not None and self.rotation.pairing == "interleaved")


def _pair_norms(x: Array, pairing: str) -> Array:
    """The norm of each pair of dimensions that a rotation turns together, [token, head, head_dim / 2]."""
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if pairing == "interleaved" else (x[..., :half], x[..., half:])
    with np.errstate(all="ignore"):
        return np.hypot(a, b)
