"""Workers: threads that share out what lets go of the interpreter (compiled kernels, numpy's products)."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_Part = TypeVar("_Part")

MOST = 1 << 16


QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""How much time of processors a container may take, and in which time (cgroup v2)."""


@cache
def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once where Linux tells them apart; no more than its quota."""
    return min(_cores(), _quota(QUOTA))


def _quota(path: Path) -> int:
    """As many processors as a container's quota is worth, at least one."""
    try:
        most, period = path.read_text().split()
        return max(1, math.ceil(int(most) / int(period)))
    except (OSError, ValueError):  # there is none, or it is "max"
        return MOST


def _cores() -> int:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            return len(allowed)
    return len(siblings)


class _Workers:
    """How many there are, and the threads beside the one that asks, once they are needed."""

    def __init__(self) -> None:
        self.count: int | None = None
        self.pool: ThreadPoolExecutor | None = None
        self.size = 0
        self.lock = threading.Lock()
        self.busy = threading.local()

    def threads(self, count: int) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        with self.lock:
            if self.pool is None or self.size < count:
                self.pool, self.size = ThreadPoolExecutor(count, "firstdiff"), count
            return self.pool


_workers = _Workers()


def jobs() -> int:
    """How many threads compute: as many as there are physical cores, where nobody has said otherwise.

    1 within what they share out already.
    """
    if getattr(_workers.busy, "here", False):
        return 1
    return physical_cores() if _workers.count is None else _workers.count


@contextmanager
def workers(count: int | None) -> Iterator[None]:
    """Compute with so many threads while the block runs; None leaves their number as it is."""
    before, _workers.count = _workers.count, _workers.count if count is None else count
    try:
        yield
    finally:
        _workers.count = before


def shared_out(work: Callable[[Sequence[_Part]], None], parts: Sequence[_Part]) -> None:
    """Call `work` on all parts, divided among the workers: each takes every n-th of them, in order.

    What it does with a part must not depend on the other ones, so that the number of workers changes no result.
    """
    count = min(jobs(), len(parts))
    if count <= 1:
        work(parts)
        return

    def busy(share: Sequence[_Part]) -> None:
        _workers.busy.here = True
        try:
            work(share)
        finally:
            _workers.busy.here = False

    # In the context of who asks: what numpy warns of is a part of it.
    others = [_workers.threads(count - 1).submit(copy_context().run, busy, parts[i::count]) for i in range(1, count)]
    try:
        busy(parts[::count])
    finally:
        for other in others:
            other.result()
