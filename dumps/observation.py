"""Observations: what an engine printed of a tensor, each number with half a unit of its last digit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from firstdiff.dumps.log_lines import LineReader, Printed, Values
from firstdiff.dumps.patterns import NUMBERS
from firstdiff.dumps.site import Site


@dataclass(frozen=True, slots=True)
class Observation:
    """What a log says of one tensor, each number with half a unit of its last digit.

    Parameters
    ----------
    site
        Its point, layer and step; the step is 0 where none is printed.
    line
        Where it stands, from 1 on.
    stepped
        Whether the step was printed.
    rms, min, max, mean, std, sum, norm
        Statistics, None where not printed.
    first, last
        The tensor's first and last values, row by row.
    top
        Token ids and their logits.
    size
        Number of values, where it was printed.
    """

    site: Site
    line: int
    stepped: bool = False
    rms: Printed | None = None
    min: Printed | None = None
    max: Printed | None = None
    mean: Printed | None = None
    std: Printed | None = None
    sum: Printed | None = None
    norm: Printed | None = None
    first: tuple[Printed, ...] = ()
    last: tuple[Printed, ...] = ()
    top: tuple[tuple[int, Printed], ...] = ()
    size: int | None = None

    @property
    def numbers(self) -> dict[str, Printed]:
        """The statistics that were printed, by name."""
        return {name: p for name in NUMBERS if (p := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Unknown:
    """A name that is not understood: where it was first seen, and how often."""

    line: int
    name: str
    why: str
    count: int = 1


def with_row(observation: Observation, line: str, lines: LineReader) -> Observation:
    """Add a row of llama.cpp's: the first one begins the tensor, and the last one ends it."""
    start, dots, end = line.partition("...")
    left, right = (lines.numbers(part.strip(" [],")) for part in (start, end if dots else start))
    return replace(observation, first=observation.first or left, last=right)


def with_values(observation: Observation, values: Values) -> Observation:
    """Add values to an observation; what it has stays."""
    new: dict[str, Any] = {k: v for k, v in (values.numbers | values.lists).items() if not getattr(observation, k)}
    if values.top and not observation.top:
        new["top"] = values.top
    return replace(observation, **new)
