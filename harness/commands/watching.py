"""A command's progress on stderr, and what Ctrl-C leaves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
