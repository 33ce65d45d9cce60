"""Running the user's engine: its command, its output live, its end, whatever that is."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TextIO

from firstdiff.engines.process_output import Output, follow
from firstdiff.errors import UsageError

GRACE = 1.0  # seconds that an engine has between the request to end and its end, to close its dump

PARTS = "parts"
"""The placeholder of an engine's command that says how many tokens are run at a time."""

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")


def takes_parts(command: str) -> bool:
    """Whether a command is told how many tokens are run at a time."""
    return any(match[2] == PARTS for match in _PLACEHOLDER.finditer(command))


@dataclass(frozen=True, slots=True)
class EngineRun:
    """How one run of the user's engine went.

    Parameters
    ----------
    command
        The words that were run.
    exit_code
        None where the engine was ended by a signal, or never began.
    signal
        Name of the signal that ended it, such as ``SIGSEGV``.
    timed_out
        Whether it was ended because its time was up.
    seconds
        How long it ran.
    tail
        The last lines that it printed.
    dumped
        Whether there is anything at the place where it should dump.
    problem
        What is wrong, in one sentence; None for a run that ended well and left a dump.
    """

    command: tuple[str, ...]
    exit_code: int | None
    signal: str | None
    timed_out: bool
    seconds: float
    tail: tuple[str, ...]
    dumped: bool
    problem: str | None


def run_engine(
    command: str,
    *,
    model: Path,
    tokens: Sequence[int],
    decode: int,
    dump: Path,
    timeout: float | None = None,
    echo: TextIO,
    folder: Path | None = None,
    logits: bool = False,
    parts: Sequence[int] = (),
) -> EngineRun:
    """Run an engine, and wait for its end.

    Parameters
    ----------
    command
        Such as ``./my-engine -m {model} --tokens {tokens} -n {decode} --dump {dump}``. It is split into words as a
        shell does, then each placeholder is replaced within its word; ``{{name}}`` stands for ``{name}`` itself.
        No shell sees it.
    model, tokens, decode
        What takes the placeholders' places: an absolute path, ids with commas between, a count.
    dump
        Where the engine shall write: a path at which nothing is yet, or an empty folder. The folder above it is
        made. Also in the engine's environment, as ``FIRSTDIFF_DUMP``.
    timeout
        Seconds until the engine is ended, with every process that it started; None waits.
    echo
        Where its output appears line by line while it runs.
    folder
        The folder that it runs in; None for the working directory.
    logits
        Whether what it writes are logits: the command then has ``{logits}`` instead of ``{dump}``, a file in `dump`,
        and no ``{decode}``.
    parts
        How many of the tokens are run at a time, in order, where it writes logits: what takes the place of
        ``{parts}``, which a command need not have. All of them at once where there are none.

    Raises
    ------
    UsageError
        For a command that is no command, an unknown placeholder, one without ``{dump}``, or a dump that is there.
    """
    if timeout is not None and not timeout > 0:
        raise UsageError(f"a timeout of {timeout:g} s: give a number of seconds above 0")
    place = Path(os.path.abspath(dump))  # noqa: PTH100 - resolve() follows links, absolute() leaves ..
    argv = words_of(
        command,
        {
            "model": os.path.abspath(model),  # noqa: PTH100
            "tokens": ",".join(map(str, tokens)),
            **({"logits": str(place / "logits")} if logits else {"decode": str(decode), "dump": str(place)}),
            **({PARTS: ",".join(map(str, parts or (len(tokens),)))} if logits else {}),
        },
        "logits" if logits else "dump",
    )
    if _is_there(place):
        raise UsageError(
            f"{place}: is there already, and would be taken for this run's dump: remove it, or give another"
        )
    (place if logits else place.parent).mkdir(parents=True, exist_ok=True)
    return _run(argv, place, timeout, Output(echo), folder, "logits" if logits else "dump")


def words_of(command: str, values: dict[str, str], written: str | None, option: str = "--engine") -> tuple[str, ...]:
    """The words of a command, its placeholders replaced in one pass: a value that looks like one stays as it is.

    Parameters
    ----------
    command, values
        The command, and what takes the place of each placeholder.
    written
        The placeholder of what it writes; None for a command that writes nothing, such as a server's.
    option
        The option that it was given by.

    Raises
    ------
    UsageError
        For a command that is no command, an unknown placeholder, or one that is missing.
    """
    known = ", ".join(f"{{{name}}}" for name in values)
    used = set()

    def replaced(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        if escaped is not None:
            return f"{{{escaped}}}"
        if name not in values:
            raise UsageError(
                f"{option}: {{{name}}} is not known: there are {known} (write {{{{{name}}}}} to pass it on)"
            )
        used.add(name)
        return values[name]

    try:
        split = shlex.split(command)
    except ValueError as e:
        raise UsageError(f"{option}: {command!r:.200} cannot be split into words ({e}): check its quotes") from None
    if not split or "\0" in command:
        raise UsageError(f"{option}: {command!r:.200} is no command: give a program and its arguments, with {known}")
    argv = tuple(_PLACEHOLDER.sub(replaced, word) for word in split)
    if written is not None and written not in used:
        raise UsageError(
            f"{option}: {command!r:.200} has no {{{written}}}, so what it writes cannot be found: there are {known}"
        )
    if written in (None, "logits") and (left := [name for name in values if name not in {*used, PARTS}]):
        raise UsageError(
            f"{option}: {command!r:.200} has no {{{left[0]}}}, which is another one for each run: there are {known}"
        )
    return argv


def _run(
    argv: tuple[str, ...], dump: Path, timeout: float | None, output: Output, folder: Path | None, what: str
) -> EngineRun:
    began = time.monotonic()
    try:
        process = begun(argv, subprocess.PIPE, folder, FIRSTDIFF_DUMP=str(dump))
    except (OSError, ValueError) as e:
        return EngineRun(argv, None, None, False, 0.0, (), _is_there(dump), not_started(argv[0], e, folder))
    try:
        timed_out = not follow(process, output, None if timeout is None else began + timeout)
    finally:  # at Ctrl-C and whatever else ends this: no engine is left behind
        end(process)
        output.close()
    seconds = time.monotonic() - began
    code = process.returncode
    ended = _signal(-code) if code < 0 else None
    dumped = _is_there(dump)
    run = EngineRun(argv, None if ended else code, ended, timed_out, seconds, tuple(output.tail), dumped, None)
    return _with_problem(run, dump, timeout, what)


def begun(
    argv: Sequence[str], output: int | IO[bytes], folder: Path | None = None, **environment: str
) -> subprocess.Popen[bytes]:
    """Start an engine in a group of its own, its two streams in one; `end` ends it.

    Raises
    ------
    OSError, ValueError
        Where it cannot be started.
    """
    return subprocess.Popen(  # noqa: S603 - the user's own command, without a shell
        argv,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | environment,
        bufsize=0,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """End the engine and every process of its group, politely first."""
    try:
        if process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _with_problem(run: EngineRun, dump: Path, timeout: float | None, what: str) -> EngineRun:
    """The run with what is wrong about it."""
    missing = "" if run.dumped else f", and wrote no {what} to {dump}"
    if run.timed_out:
        problem = f"the engine did not end within {timeout:g} s{missing}"
    elif run.signal is not None:
        problem = f"the engine crashed ({run.signal}) after {run.seconds:.1f} s{missing}"
    elif run.exit_code:
        problem = f"the engine {how_ended(run.exit_code)}{missing}"
    elif not run.dumped and not run.tail:
        problem = f"the engine printed nothing and wrote nothing to {dump}"
    elif not run.dumped:
        problem = f"the engine wrote no {what} to {dump}"
    else:
        return run
    return EngineRun(run.command, run.exit_code, run.signal, run.timed_out, run.seconds, run.tail, run.dumped, problem)


def how_ended(code: int) -> str:
    """What a return code says of a process's end, in words."""
    return f"crashed ({_signal(-code)})" if code < 0 else f"ended with exit code {code}{_shell_says(code)}"


def _shell_says(code: int) -> str:
    """A shell that ran the engine passes its signal on as 128 + n, and has two codes of its own."""
    if code in (126, 127):
        return " (a shell says: not executable)" if code == 126 else " (a shell says: not found)"  # noqa: PLR2004
    return f" (a shell says: {_signal(code - 128)})" if 128 < code < 128 + signal.NSIG else ""  # noqa: PLR2004


def _signal(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def not_started(program: str, error: Exception, folder: Path | None = None) -> str:
    """Why a program could not be started, in words."""
    if isinstance(error, FileNotFoundError):
        there = os.path.exists(os.path.join(folder or "", program))  # noqa: PTH110, PTH118 - of any text
        return f"not found: {program}" + (" is there, but the interpreter in its first line is not" if there else "")
    if isinstance(error, PermissionError):
        return f"not executable: {program}: make it so with chmod +x, or name its interpreter first"
    reason = error.strerror if isinstance(error, OSError) else error
    return f"cannot be run: {program}: {reason}"


def _is_there(dump: Path) -> bool:
    """Whether anything was dumped: a file that is not empty, or a folder with something in it."""
    try:
        return any(dump.iterdir()) if dump.is_dir() else dump.stat().st_size > 0
    except OSError:
        return False
