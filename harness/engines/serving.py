"""A server of the user's: its command started, asked over HTTP on this machine only, and ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any

from firstdiff.engines.process import begun, end, how_ended, not_started, words_of
from firstdiff.engines.process_output import LONGEST, TAIL, Output
from firstdiff.engines.user_engine import LAST_WORDS
from firstdiff.errors import CaptureError, escaped

HOST = "127.0.0.1"

LARGEST = 1 << 24
"""Bytes of an answer that are read: a thousand tokens with all that servers say of each take less than a million."""

PAUSE = 0.05
"""Seconds between two questions whether a server is there."""

ENDING = 0.3
"""Seconds in which a server that broke off an answer ends, if it crashed."""

SHOWN = 200
"""Characters of an answer that a message shows."""

UNAVAILABLE = 503
"""What a server answers while it still loads its model."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered: the status, and the body."""

    status: int
    body: bytes

    @property
    def beginning(self) -> str:
        """The body's first words."""
        text = " ".join(self.body[: 4 * SHOWN].decode(errors="replace").split())
        return escaped(text[:SHOWN]) + (" …" if len(text) > SHOWN else "")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs.

    Parameters
    ----------
    process, log
        The process, and what it prints.
    port
        Where it shall answer.
    timeout, until
        Seconds that it may take in all, and when they are over.
    """

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    port: int
    timeout: float
    until: float

    def asked(self, path: str, body: dict[str, Any] | None = None) -> Reply:
        """Ask, as often as it takes until the server is there and has loaded its model.

        Parameters
        ----------
        path, body
            Where to ask, and what to post there; None gets what is there.

        Raises
        ------
        CaptureError
            Where it ends before, does not answer in time, or breaks off its answer to what was posted.
        """
        reply = None
        while True:
            self._check(reply)
            try:
                reply = self._exchanged(path, body)
                if reply.status != UNAVAILABLE:
                    return reply
            except (OSError, HTTPException) as e:
                if body is not None:
                    with suppress(subprocess.TimeoutExpired):  # it may be ending
                        self.process.wait(ENDING)
                    self._check(reply)
                    why = escaped(f"{type(e).__name__}: {e}"[:SHOWN])
                    raise self._failed(f"it broke off its answer from {path} ({why})") from None
            time.sleep(PAUSE)

    def _check(self, latest: Reply | None) -> None:
        """Whether it still runs, and there is time left; `latest` is what it answered last."""
        if self.process.poll() is not None:
            raise self._failed(f"it {how_ended(self.process.returncode)} before it answered")
        if time.monotonic() >= self.until:
            but = "" if latest is None else f", but with status {latest.status}: {latest.beginning}"
            raise self._failed(f"it did not answer on {HOST}:{self.port} within {self.timeout:g} s{but}")

    def _exchanged(self, path: str, body: dict[str, Any] | None) -> Reply:
        """One question, and what is answered before time is up, at however many bytes a second."""
        connection = HTTPConnection(HOST, self.port, timeout=max(PAUSE, self.until - time.monotonic()))
        try:
            connection.connect()
            with _cut_off(connection.sock, self.until):
                headers = {"Content-Type": "application/json", "Connection": "close"}
                sent = None if body is None else json.dumps(body)
                connection.request("GET" if body is None else "POST", path, sent, headers)
                response = connection.getresponse()
                return Reply(response.status, self._read(response))
        finally:
            connection.close()

    def _read(self, response: HTTPResponse) -> bytes:
        body = response.read(LARGEST + 1)
        if time.monotonic() >= self.until:  # it may have been cut off
            raise TimeoutError
        if len(body) > LARGEST:
            raise self._failed(f"it answers with more than {LARGEST:,} bytes, where some thousand are enough")
        return body

    def _failed(self, what: str) -> CaptureError:
        tail = self._tail()
        return CaptureError(f"--server: {what}" + (f"; its last words: {' | '.join(tail)}" if tail else ""))

    def _tail(self) -> list[str]:
        """The last lines that it printed."""
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            output = Output(nowhere)
            self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - TAIL * LONGEST))
            output.take(self.log.read(TAIL * LONGEST))
            output.close()
        return [line for line in output.tail if line.strip()][-LAST_WORDS:]


@contextmanager
def serving(command: str, *, model: Path, timeout: float) -> Iterator[Server]:
    """Start a server for a model on a port that is free, and end it with every process of its group.

    Parameters
    ----------
    command
        With ``{model}`` and ``{port}``: see :func:`firstdiff.engines.process.words_of`.
    model
        What it shall load.
    timeout
        Seconds that it may take until everything that it is asked is answered.

    Raises
    ------
    UsageError
        For a command that is no command, an unknown placeholder, or one that is missing.
    CaptureError
        Where it cannot be started.
    """
    port = _free_port()
    argv = words_of(command, {"model": os.path.abspath(model), "port": str(port)}, None, "--server")  # noqa: PTH100
    until = time.monotonic() + timeout
    with tempfile.TemporaryFile() as log:
        try:
            process = begun(argv, log)
        except (OSError, ValueError) as e:
            raise CaptureError(f"--server: {not_started(argv[0], e)}") from None
        try:
            yield Server(process, log, port, timeout, until)
        finally:
            end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def _cut_off(connection: socket.socket, until: float) -> Iterator[None]:
    """Shut a connection down when time is up: its own timeout begins again at each byte."""

    def shut() -> None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, until - time.monotonic()), shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
