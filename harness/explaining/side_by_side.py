"""Hypotheses tried side by side, by the workers: what comes out does not depend on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Event
from typing import TypeVar

from firstdiff.explaining.attempt import Attempt, Means
from firstdiff.explaining.budget import OutOfTime
from firstdiff.explaining.failures import Failures
from firstdiff.model.workers import shared_out

_Of = TypeVar("_Of")


def side_by_side(tried: Callable[[_Of, Means], list[Attempt]], of: Sequence[_Of], means: Means) -> Iterator[Attempt]:
    """Yield what comes of each, in order; what could not be tried is noted in that order too.

    Raises
    ------
    OutOfTime
        Where the time is over, behind what came of those that were done by then.
    """
    found: list[list[Attempt]] = [[] for _ in of]
    noted = [Failures() for _ in of]
    late: list[OutOfTime] = []
    stopped = Event()

    def work(numbers: Sequence[int]) -> None:
        for number in numbers:
            if stopped.is_set():
                return
            try:
                found[number] = tried(of[number], replace(means, failures=noted[number]))
            except OutOfTime as e:
                late.append(e)
                return
            except BaseException:  # Ctrl-C too: the others end with what they have in hand
                stopped.set()
                raise

    shared_out(work, range(len(of)))
    for attempts, failures in zip(found, noted, strict=True):
        means.failures.take(failures)
        yield from attempts
    if late:
        raise late[0]
