"""One verdict of the bench of trust: judged within a limit of time, and what came of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from trust_draws import Recipe

from firstdiff.dumps import Trace
from firstdiff.model.engine import Model
from firstdiff.runs import judge
from firstdiff.runs.run import Run
from firstdiff.verdict import Verdict

SECONDS = 60
"""What one verdict may take of a processor: the budget of explaining, which is its longest part."""


@dataclass(frozen=True)
class Outcome:
    """What a verdict made of one dump.

    `failed` says what is wrong with the verdict, by kind, and `detail` where. `seen` is whether the dump holds a site
    that the fault changes clearly; `site` whether the first divergence is the right one, `right` whether the cause is.
    """

    part: str
    seed: int
    kind: str
    recipe: Recipe
    failed: tuple[str, ...]
    detail: str
    seconds: float
    seen: bool = False
    site: bool = False
    right: bool = False
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Judged:
    """A verdict, or what came in its place, and how long it took."""

    verdict: Verdict | None
    error: str
    seconds: float


class TooLong(BaseException):
    """A verdict takes too long."""


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Stop what takes more processor time: the machine may have other things to do."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judged(model: Model, trace: Trace) -> Judged:
    """Judge a dump, as every command does."""
    start = time.process_time()
    try:
        with _at_most(SECONDS):
            verdict, error = judge.judge(Run(model), trace), ""
            if verdict.failed:
                failed = verdict.failed[0]
                verdict, error = None, f"error: {failed.hypothesis} could not be tried at {failed.site}: {failed.error}"
    except TooLong:
        verdict, error = None, "too long"
    except Exception as e:  # noqa: BLE001 - an error is an outcome
        verdict, error = None, f"error: {type(e).__name__}: {e}"
    return Judged(verdict, error, time.process_time() - start)
