"""An engine that is given a model file and tokens, and gives logits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from firstdiff.engines.process import run_engine, takes_parts
from firstdiff.engines.user_engine import LAST_WORDS
from firstdiff.errors import CaptureError
from firstdiff.probing.logits import read_logits

Floats = npt.NDArray[np.float32]


class RefusedError(CaptureError):
    """An engine that ended with an exit code of its own, and gave no logits: it may not support what it was given."""


class NotStartedError(CaptureError):
    """A command that cannot be run."""


class BlackBox(Protocol):
    """An engine of which only the logits are seen."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def decodes(self) -> bool:
        """Whether it can be told to run a prompt in parts, each with what is cached of those before."""

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
        """Logits of all tokens [token, width], or of the last one [1, width].

        `parts` says how many tokens are run at a time; all at once where there are none.

        Raises
        ------
        CaptureError
            Where it gives none.
        """


@dataclass(frozen=True, slots=True)
class CommandEngine:
    """An engine that is a command: it is run anew for each model.

    Parameters
    ----------
    command
        With ``{model}``, ``{tokens}`` and ``{logits}``, and with ``{parts}`` if it decodes: see
        :func:`firstdiff.engines.process.run_engine`.
    folder
        Where its logits may lie while they are read: a folder of its own.
    timeout
        Seconds that a run may take.
    """

    command: str
    folder: Path
    timeout: float

    @classmethod
    def of(cls, command: str, folder: str, timeout: float) -> CommandEngine:
        """An engine whose logits lie in a folder within another one."""
        return cls(command, Path(folder) / "logits", timeout)

    @property
    def name(self) -> str:
        """What reports call it."""
        return "your engine"

    @property
    def decodes(self) -> bool:
        """Whether the command is told how many tokens are run at a time."""
        return takes_parts(self.command)

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
        """Run the command, and read what it wrote."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            done = run_engine(
                self.command,
                model=model,
                tokens=tokens,
                decode=0,
                dump=self.folder,
                timeout=self.timeout,
                echo=nowhere,
                logits=True,
                parts=parts,
            )
        try:
            if done.problem is not None:
                last = f"; its last words: {' | '.join(done.tail[-LAST_WORDS:])}" if done.tail else ""
                kind = RefusedError if done.exit_code and not done.dumped else CaptureError
                if done.exit_code is None and done.signal is None and not done.timed_out:
                    kind = NotStartedError
                raise kind(f"--engine: {done.problem}{last}")
            return read_logits(self.folder, tokens=len(tokens), width=width)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def whole(given: Floats, tokens: int) -> Floats:
    """Logits by token [token, vocabulary]: rows that were not given are NaN, and what is NaN in others is infinite."""
    made = np.full((tokens, given.shape[1]), np.nan, np.float32)
    made[-len(given) :] = np.where(np.isnan(given), np.inf, given)
    return made
