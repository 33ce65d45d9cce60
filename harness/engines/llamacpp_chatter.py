"""What llama.cpp prints: kept in a file, so that the terminal stays the report's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from firstdiff.engines import ggml


@contextlib.contextmanager
def chatter(log: Path | None) -> Iterator[list[str]]:
    """Send llama.cpp's chatter to a file, or nowhere, and yield its last lines: the terminal stays the report's."""
    lines: list[str] = []
    with contextlib.ExitStack() as stack:
        file = None if log is None else stack.enter_context(log.open("ab"))

        def write(_level: int, text: bytes, _user: object) -> None:
            lines.append(text.decode(errors="replace").strip())
            del lines[:-50]
            if file is not None:
                file.write(text)

        _set_log(write)
        try:
            yield lines
        finally:
            _set_log(lambda *_: None)


_log_callback: Any = None


def _set_log(write: Callable[[int, bytes, object], None]) -> None:
    """Install a log callback that outlives every context: llama.cpp still logs while it frees its memory."""
    global _log_callback  # noqa: PLW0603 - C holds the pointer, so the process must hold the object
    llama = ggml.bindings()
    callback = llama.llama_log_callback(write)
    llama.llama_log_set(callback, None)
    _log_callback = callback
