"""Cases judged side by side, in processes that take the next case when they are done with one."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

AHEAD = 2  # cases handed out to each process, so that none waits for its next one

_STOPPED = threading.Event()  # of this process

Case = TypeVar("Case")
Result = TypeVar("Result")


def side_by_side(
    cases: Sequence[Case], judged: Callable[[Case], Result], jobs: int
) -> Iterator[tuple[int, Result | None]]:
    """Judge cases in several processes, and yield the number of each with its result, as they end.

    A process that ends in mid-case (llama.cpp may end it) takes others with it. The cases that were in hand are then
    judged again, each alone: that which ends its process again has no result (None), and no other is lost.

    Parameters
    ----------
    cases, judged
        What to judge, and the function that judges one: both are sent to other processes.
    jobs
        How many processes there are.
    """
    left = list(range(len(cases)))
    while left:
        in_hand: dict[Future[Result], int] = {}
        try:
            for number, result in _pooled(cases, judged, left, jobs, in_hand):
                left.remove(number)
                yield number, result
        except BrokenProcessPool:
            for number in sorted(in_hand.values()):
                left.remove(number)
                yield number, _alone(cases[number], judged)


def _pooled(
    cases: Sequence[Case],
    judged: Callable[[Case], Result],
    left: Sequence[int],
    jobs: int,
    in_hand: dict[Future[Result], int],
) -> Iterator[tuple[int, Result]]:
    """Judge what is left; `in_hand` is what the processes work at, and what they will take next."""
    coming = iter(tuple(left))
    with _pool(min(jobs, len(left))) as pool:
        while True:
            for number in islice(coming, AHEAD * jobs - len(in_hand)):
                in_hand[pool.submit(_unless_stopped, judged, cases[number])] = number
            if not in_hand:
                return
            for future in wait(in_hand, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield in_hand.pop(future), result


def _alone(case: Case, judged: Callable[[Case], Result]) -> Result | None:
    try:
        with _pool(1) as pool:
            return pool.submit(_unless_stopped, judged, case).result()
    except BrokenProcessPool:
        return None


def _pool(processes: int) -> ProcessPoolExecutor:
    # A fork would share llama.cpp's and BLAS's threads, which are not there in it.
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    """Let Ctrl-C end the case in hand without a traceback, and keep the next one from beginning."""
    signal.signal(signal.SIGINT, _stop)


def _stop(*_: object) -> None:
    _STOPPED.set()
    sys.exit(128 + signal.SIGINT)


def _unless_stopped(judged: Callable[[Case], Result], case: Case) -> Result:
    if _STOPPED.is_set():
        sys.exit(128 + signal.SIGINT)
    return judged(case)
