"""What is said of one site, and a closer look at it: frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from firstdiff.dumps.site import Site


class Status(StrEnum):
    """What is said of a site: a closed set."""

    AGREES = "agrees"
    INHERITS = "inherits"
    DIVERGES = "diverges"
    NOT_RECORDED = "not recorded"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a tensor, with both values.

    Parameters
    ----------
    index
        Its place in the reference's layout.
    candidate, reference
        The values.
    there
        Its place in the tensor that the candidate recorded, where that is another one.
    """

    index: tuple[int, ...]
    candidate: float
    reference: float
    there: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class SiteVerdict:
    """What is said of one site.

    Parameters
    ----------
    site, op
        Which site, and the reference's operation there.
    status
        See :class:`Status`.
    local_error, floor
        The largest relative error of a token, and the error that a correct engine of that arithmetic stays below.
    tight
        Where the floor is the level of an unknown arithmetic: the floor of the known one nearest to it.
    drift
        Relative difference to another engine's free-running output. Shown, never judged.
    worst, where, not_finite
        For a diverging site: the worst element, where along each axis it is wrong, how many NaN or infinities.
    inputs_right
        Whether nothing upstream of the site diverges.
    segment
        Sites between the last recorded inputs and this one, which were computed and not judged.
    reason
        Why a site is not comparable.
    leans
        Whether a diverging site reads rows of other tokens that were not recorded: what is wrong may be in those rows
        of any site before it.
    """

    site: Site
    op: str
    status: Status
    local_error: float | None = None
    floor: float | None = None
    drift: float | None = None
    worst: Element | None = None
    where: dict[str, str] | None = None
    not_finite: int = 0
    inputs_right: bool = True
    segment: tuple[Site, ...] = ()
    reason: str | None = None
    tight: float | None = None
    leans: bool = False

    @property
    def point(self) -> str:
        """The site's point."""
        return self.site.point

    @property
    def layer(self) -> int | None:
        """The site's layer; None outside the layers."""
        return self.site.layer

    @property
    def step(self) -> int:
        """The site's step."""
        return self.site.step


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the elements of one tensor that count and are finite; `not_finite` counts the others."""

    mean: float
    rms: float
    low: float
    high: float
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """The error along one axis: of each index, or the largest of each `step` neighbours."""

    axis: str
    size: int
    step: int
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many elements of both tensors lie in each of equally wide bins from `low` to `high`."""

    low: float
    high: float
    candidate: tuple[int, ...]
    reference: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Detail:
    """A closer look at one site: what a page shows of it. See :mod:`firstdiff.judging.closeup`.

    Parameters
    ----------
    shape, axes
        Of both tensors.
    candidate, reference
        Statistics of both.
    worst
        The elements that differ most, relative to their token's root mean square, the worst first.
    profiles
        The error along each axis, relative to the same.
    histogram
        Of both; None where nothing is finite.
    scatter
        Pairs of values, candidate's and reference's, of elements spread over the tensor and of the worst.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    candidate: Statistics
    reference: Statistics
    worst: tuple[Element, ...] = ()
    profiles: tuple[Profile, ...] = ()
    histogram: Histogram | None = None
    scatter: tuple[tuple[float, float], ...] = ()
