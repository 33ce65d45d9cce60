"""``firstdiff gate``: what it keeps of a run, what it prints, and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from firstdiff.checked import Checked, to_json
from firstdiff.folders import keep
from firstdiff.formats import written
from firstdiff.gate import run_gate
from firstdiff.gate_config import read_config
from firstdiff.progress import Progress


def gate_command(
    config: Path, *, out: Path, only: Sequence[str], regen: bool, threads: int | None, kind: str, progress: Progress
) -> tuple[str | None, list[Checked], int]:
    """Run a gate and keep ``gate.json``, ``summary.md`` and ``junit.xml`` beside its cases.

    On GitHub (``$GITHUB_ACTIONS``) the annotations go to stderr, which is part of the log that GitHub reads.

    Returns
    -------
    What is printed in the format `kind` (None for ``text``), the cases, and the worst of their exit codes.
    """
    cases = run_gate(read_config(config), out=out, only=only, regen=regen, threads=threads, progress=progress)
    progress.end()
    text = {"json": to_json(cases)} | {kind: written(cases, kind) for kind in ("markdown", "junit")}
    for name, of in (("gate.json", "json"), ("summary.md", "markdown"), ("junit.xml", "junit")):
        keep(out / name, text[of])
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from firstdiff.reports.annotations import lines

        sys.stderr.writelines(f"{line}\n" for line in lines(cases))
    if kind == "html":
        text[kind] = written(cases, kind)
    return text.get(kind), cases, max(c.code for c in cases)
