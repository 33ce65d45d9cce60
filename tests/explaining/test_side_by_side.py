"""Hypotheses side by side: in order whatever the number of workers, and ended together."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from firstdiff.explaining.attempt import Means
from firstdiff.explaining.budget import OutOfTime
from firstdiff.explaining.failures import Failures
from firstdiff.explaining.side_by_side import side_by_side
from firstdiff.model.workers import workers


def means() -> Means:
    scene: Any = None
    return Means(scene, {}, Failures())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_comes_of_each_comes_in_order(count: int) -> None:
    def tried(number: int, _means: Means) -> list[Any]:
        time.sleep(0.01 if number == 0 else 0)
        return [number, -number]

    with workers(count):
        assert list(side_by_side(tried, range(6), means())) == [x for n in range(6) for x in (n, -n)]


def test_what_was_found_before_the_time_ended_stands() -> None:
    def tried(number: int, _means: Means) -> list[Any]:
        if number == 3:
            raise OutOfTime
        return [number]

    with workers(1):
        coming = side_by_side(tried, range(6), means())
        assert [next(coming) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OutOfTime):
        next(coming)


def test_an_interruption_ends_the_others_with_what_they_have_in_hand() -> None:
    begun: list[int] = []

    def tried(number: int, _means: Means) -> list[Any]:
        begun.append(number)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)
        return []

    with workers(2), pytest.raises(KeyboardInterrupt):
        list(side_by_side(tried, range(40), means()))
    assert len(begun) <= 4
