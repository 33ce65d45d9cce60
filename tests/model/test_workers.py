"""Workers: what is shared out is done once, by as many threads as are asked for, and fails as it would alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from firstdiff.model.workers import MOST, _quota, jobs, physical_cores, shared_out, workers


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("parts", [0, 1, 2, 5, 20])
def test_each_part_is_done_once(count: int, parts: int) -> None:
    done: list[int] = []
    with workers(count):
        shared_out(done.extend, range(parts))
    assert sorted(done) == [*range(parts)]


def test_as_many_threads_work_as_were_asked_for() -> None:
    seen: set[int] = set()

    def work(some: Sequence[int]) -> None:
        seen.add(threading.get_ident())
        time.sleep(0.02 * len(some))

    with workers(3):
        shared_out(work, range(3))
    assert len(seen) == 3


def test_without_a_number_there_is_one_a_core() -> None:
    assert jobs() == physical_cores()
    with workers(5):
        assert jobs() == 5
        with workers(None):
            assert jobs() == 5
    assert jobs() == physical_cores()


def test_what_is_shared_out_shares_nothing_out() -> None:
    """Threads that wait for threads of the same pool would wait for ever."""
    seen: list[int] = []

    def work(some: Sequence[int]) -> None:
        for _ in some:
            shared_out(lambda parts: seen.append(len(parts)), range(4))
            assert jobs() == 1

    with workers(2):
        shared_out(work, range(6))
    assert seen == [4] * 6


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_of_any_worker_is_raised_and_the_next_work_is_done(bad: int) -> None:
    def work(some: Sequence[int]) -> None:
        if bad in some:
            raise ValueError("no")

    with workers(2):
        with pytest.raises(ValueError, match="no"):
            shared_out(work, range(2))
        shared_out(lambda _: None, range(2))
        assert jobs() == 2


def test_what_numpy_warns_of_is_the_same_in_every_thread() -> None:
    def work(some: Sequence[int]) -> None:
        for _ in some:
            assert np.isnan(np.float32(np.inf) - np.float32(np.inf))

    with workers(2), np.errstate(all="ignore"):
        shared_out(work, range(4))


@pytest.mark.parametrize(
    ("told", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", MOST), ("", MOST)],
)
def test_a_containers_quota_bounds_the_cores(told: str, cores: int, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text(told)
    assert _quota(tmp_path / "cpu.max") == cores
    assert _quota(tmp_path / "none") == MOST
