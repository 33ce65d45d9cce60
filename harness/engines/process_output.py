"""What the user's engine prints: followed live, its last lines kept."""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, TextIO

from firstdiff.errors import escaped

TAIL = 20  # lines of output that a report shows
LONGEST = 2000  # bytes of a line that are shown; nobody reads more, and a line can be gigabytes
CHUNK = 1 << 16
_NOT_SHOWN = re.compile(r"\x1b\[[0-9;]{0,32}m")  # colours; other controls are escaped


def follow(process: subprocess.Popen[bytes], output: Output, until: float | None) -> bool:
    """Pass output on until the engine ends; False if its time is up first.

    What it leaves behind may hold the pipe open: after its end only what is already there is read.
    """
    pipe = process.stdout
    assert pipe is not None
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if until is not None and time.monotonic() >= until:
                return process.poll() is not None
            ended = process.poll() is not None
            if not selector.select(0 if ended else 0.05):
                if ended:
                    return True
            elif not (data := os.read(pipe.fileno(), CHUNK)):
                break
            else:
                output.take(data)
                if ended and not _drain(pipe, output):
                    return True
    try:  # it closed its output, and works on
        process.wait(None if until is None else max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _drain(pipe: IO[bytes], output: Output) -> bool:
    """Read what an ended engine left in the pipe, which holds 64 KiB or so; always False."""
    os.set_blocking(pipe.fileno(), False)
    with suppress(BlockingIOError):
        for _ in range(64):
            data = os.read(pipe.fileno(), CHUNK)
            if not data:
                break
            output.take(data)
    return False


@dataclass(slots=True)
class Output:
    """Passes lines on, and keeps the last ones; of an endless line only the beginning."""

    echo: TextIO
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    _line: bytearray = field(default_factory=bytearray)
    _cut: bool = False

    def take(self, data: bytes) -> None:
        """Take what was read, and pass on the lines that have ended."""
        *ended, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in ended:
            self._add(line)
            self._put()
        self._add(rest)
        self.echo.flush()

    def close(self) -> None:
        """Pass on a last line that has no end."""
        if self._line:
            self._put()
            self.echo.flush()

    def _add(self, part: bytes) -> None:
        room = LONGEST - len(self._line)
        self._cut |= len(part) > room
        self._line += part[:room]

    def _put(self) -> None:
        text = _NOT_SHOWN.sub("", self._line.decode(errors="replace")) + (" … (cut)" if self._cut else "")
        text = escaped(text, keep="\t")
        self._line.clear()
        self._cut = False
        self.tail.append(text)
        with suppress(UnicodeEncodeError):
            self.echo.write(text + "\n")
