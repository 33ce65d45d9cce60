"""Ctrl-C, and a request to end: what was recorded until then, and where it is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_back(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at Ctrl-C, and raise only at the end.

    For C code that calls back: Python drops an exception that leaves a callback, and with it the interruption.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def hold(*_: object) -> None:
        nonlocal came
        came = True
        stop()

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt


@contextmanager
def ended_by_request() -> Iterator[None]:
    """Take a request to end (SIGTERM) for Ctrl-C, so that no file and no process is left behind."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
