"""The time that explaining may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from time import monotonic

SECONDS = 60.0
"""By default: SmolLM2 with one fault takes one or two, and a layer that was not recorded some fifteen."""


class OutOfTime(Exception):  # noqa: N818 - no error: what was found until then stands
    """The time is over."""


@dataclass(slots=True)
class Budget:
    """So many seconds from when it is made.

    Parameters
    ----------
    seconds
        How long; infinite for no end.
    clock
        Gives the time in seconds.
    """

    seconds: float = inf
    clock: Callable[[], float] = monotonic
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self._end = self.clock() + self.seconds

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.clock() >= self._end

    def check(self) -> None:
        """Go on only where there is time left.

        Raises
        ------
        OutOfTime
            Where there is none.
        """
        if self.over:
            raise OutOfTime
