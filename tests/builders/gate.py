"""A folder that the gate can be run in, and changes of the trace and of the baseline in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from builders.command_line import Command, Ran
from builders.models import Array
from builders.traces import rewrite_trace

PROMPT = (1, 70, 71, 72, 73)
SITES = 2 * (2 * 19 + 3)
CONFIG = '[models]\ntiny = "tiny.gguf"\n[traces]\nmine = "mine"\n'
Change = Callable[[str, Array], Array | None]


class Repository:
    """A folder with a model, a firstdiff.toml, and the trace ``mine``."""

    baseline = Path("firstdiff-baseline/tiny/mine.json")

    def __init__(self, kept: Path, command: Command) -> None:
        self.kept, self._command, self._runs = kept, command, 0
        Path("tiny.gguf").symlink_to(kept / "tiny.gguf")
        self.holds("right")
        self.config(CONFIG)

    def config(self, text: str) -> None:
        Path("firstdiff.toml").write_text(text)

    def holds(self, trace: str, change: Change = lambda _, x: x, steps: int | None = None) -> None:
        """Let ``mine`` be a trace with a change."""
        rewrite_trace(self.kept / trace, Path("mine"), change, steps=steps)

    def gate(self, *options: object) -> Ran:
        self._runs += 1
        self.out = Path(f"out-{self._runs}")
        return self._command("gate", "--out", self.out, *options)

    def case(self, name: str = "tiny/mine") -> dict[str, Any]:
        """What the last run says of a case."""
        found: dict[str, Any] = json.loads((self.out / "gate.json").read_text())["cases"][name]
        return found


def scaled(by: float, site: str) -> Change:
    return lambda name, x: (x * np.float32(by)).astype(x.dtype) if name == site else x


def without(*sites: str) -> Change:
    return lambda name, x: None if name in sites else x


def damaged(repository: Repository, change: Callable[[str], str]) -> Ran:
    repository.baseline.write_text(change(repository.baseline.read_text()))
    return repository.gate()
