"""The user's engine: run, its dump opened, and its tokens compared with those that it was given."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from firstdiff.dumps import Trace, TraceError, open_trace
from firstdiff.engines.process import EngineRun, run_engine
from firstdiff.errors import CaptureError

LAST_WORDS = 5  # lines that an engine printed before it failed


@dataclass(frozen=True, slots=True)
class Engine:
    """The user's engine: its command line, steps to decode, seconds it may take, and the folder it runs in."""

    command: str
    decode: int
    timeout: float
    folder: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EngineTrace:
    """What an engine dumped, and what the run says of the input contract.

    Parameters
    ----------
    trace
        The dump; what was dumped before a crash is in it.
    checks
        ``tokens``, which may be others than it was given, and ``engine``, how it ended, if not well: a run that
        crashed is no pass, whatever was dumped before.
    """

    trace: Trace
    checks: dict[str, str]


def engine_trace(engine: Engine, *, model: Path, tokens: Sequence[int], names: str | None, dump: Path) -> EngineTrace:
    """Run an engine and open its dump.

    Raises
    ------
    CaptureError
        Where it left nothing that can be read, with what it did and the last lines that it printed.
    UsageError
        See :func:`firstdiff.engines.process.run_engine`.
    """
    done = run_engine(
        engine.command,
        model=model,
        tokens=tokens,
        decode=engine.decode,
        dump=dump,
        timeout=engine.timeout,
        echo=sys.stderr,
        folder=engine.folder,
    )
    last = f"; its last words: {' | '.join(done.tail[-LAST_WORDS:])}" if done.tail else ""
    try:
        trace = open_trace(dump, otherwise=tokens, names=names)
    except TraceError as e:
        raise CaptureError(f"--engine: {_unreadable(done, e)}{last}") from None
    checks = {"tokens": tokens_ran(trace, tokens) if trace.says_tokens else "not recorded"}
    return EngineTrace(trace, checks if done.problem is None else checks | {"engine": f"{done.problem}{last}"})


def _unreadable(done: EngineRun, error: TraceError) -> str:
    if done.problem is None:
        return f"its dump cannot be read: {error}"
    return f"{done.problem}, and its dump cannot be read: {error}" if done.dumped else done.problem


def tokens_ran(trace: Trace, given: Sequence[int]) -> str:
    """Say whether an engine ran the prompt that it was given, which may be in one step or in several."""
    ran: tuple[int, ...] = ()
    for step in trace.steps:
        if len(ran) < len(given):
            ran += step.tokens
    if ran == tuple(given):
        return "agrees"
    index = next((i for i, (a, b) in enumerate(zip(ran, given, strict=False)) if a != b), min(len(ran), len(given)))
    counts = f"the engine ran {len(ran):,} tokens where {len(given):,} were given"
    if index == len(ran):
        return f"{counts}: those from token {index} on are missing"
    if index == len(given):
        return f"{counts}: {ran[index]} follows the last one"
    first = f"token {index} is {ran[index]} where {given[index]} was given"
    return first if len(ran) == len(given) else f"{counts}: {first}"
