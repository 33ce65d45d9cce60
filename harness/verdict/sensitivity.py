"""How small a fault a dump could have shown: what it means that nothing diverges."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from firstdiff.dumps.site import Site


class Fault(StrEnum):
    """A number that an engine may have wrong by any amount: a closed set."""

    NORM_EPSILON = "norm epsilon"
    ROPE_BASE = "rope base"
    SOFTMAX_SCALE = "softmax scale"
    MATRIX = "matrix"  # all weights of a product, by one factor
    WEIGHT = "weight"  # one weight of a product
    EMBEDDING = "embedding"  # its rows, by one factor


@dataclass(frozen=True, slots=True)
class Smallest:
    """The smallest change of a number, at one place, that would have been a divergence.

    Parameters
    ----------
    site
        The operation whose number is changed.
    share
        By how much it is larger, as a share of itself; of one weight as a share of its row's root mean square. Infinite
        where no change would have been seen.
    seen
        The site that would have diverged.
    element
        Row and column of the one weight, in the file's order; None for a fault that is not of one weight.
    """

    site: Site
    share: float
    seen: Site
    element: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What a dump could have shown of one kind of fault.

    Parameters
    ----------
    fault
        Which number is wrong, at one place.
    least, most
        The places, among those that were tried, where the smallest change is enough, and where it takes the largest;
        None where nothing was tried, and `most` where only one place was.
    tried
        How many places were tried.
    """

    fault: Fault
    least: Smallest | None
    most: Smallest | None
    tried: int
