"""Ctrl-C: what was recorded until then, and where it is."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from firstdiff.dumps import TraceError, open_trace
from firstdiff.progress import Progress


@contextmanager
def watched(out: Path | None = None) -> Iterator[Progress]:
    """Show progress on stderr; at Ctrl-C go on with a :class:`KeyboardInterrupt` that says what is left in `out`."""
    try:
        with Progress(sys.stderr) as progress:
            yield progress
    except KeyboardInterrupt:
        raise KeyboardInterrupt("" if out is None else left_in(out)) from None


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


def left_in(out: Path) -> str:
    """Name the traces in a folder that can be read; "" where there are none."""
    found = []
    for manifest in sorted(out.rglob("trace.json")):
        try:
            steps = len(open_trace(manifest.parent).steps)
        except (TraceError, OSError):
            continue
        if steps:
            found.append(f"{manifest.parent} ({steps:,} step{'' if steps == 1 else 's'})")
    return f"what was recorded can be read: {', '.join(found)}" if found else ""
