"""``firstdiff gate``: what it keeps of a run, what it prints, and its exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from firstdiff.commands.options import budget_of
from firstdiff.commands.printing import written
from firstdiff.commands.watching import watched
from firstdiff.gate.cases import run_gate
from firstdiff.gate.config import read_config
from firstdiff.progress import Progress
from firstdiff.runs.folder import keep, run_folder
from firstdiff.verdict.gated import Checked, to_json


def gate_command(
    config: Path,
    *,
    out: Path,
    only: Sequence[str],
    regen: bool,
    shard: tuple[int, int] = (1, 1),
    jobs: int = 1,
    threads: int | None,
    kind: str,
    budget: float,
    progress: Progress,
) -> tuple[str | None, list[Checked], int]:
    """Run a gate and keep ``gate.json``, ``summary.md`` and ``junit.xml`` beside its cases.

    On GitHub (``$GITHUB_ACTIONS``) the annotations go to stderr, which is part of the log that GitHub reads.

    Returns
    -------
    What is printed in the format `kind` (None for ``text``), the cases, and the worst of their exit codes.
    """
    cases = run_gate(
        read_config(config),
        out=out,
        only=only,
        shard=shard,
        jobs=jobs,
        regen=regen,
        threads=threads,
        budget=budget,
        progress=progress,
    )
    progress.end()
    text = {"json": to_json(cases)} | {kind: written(cases, kind) for kind in ("markdown", "junit")}
    for name, of in (("gate.json", "json"), ("summary.md", "markdown"), ("junit.xml", "junit")):
        keep(out / name, text[of])
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from firstdiff.reports.annotations import lines

        sys.stderr.writelines(f"{line}\n" for line in lines(cases))
    if kind == "html":
        text[kind] = written(cases, kind)
    return text.get(kind), cases, max((c.code for c in cases), default=0)


def gate(options: argparse.Namespace) -> int:
    """Judge every case of a firstdiff.toml, and hold it to limits and baselines."""
    out = options.out or run_folder(options.config)
    with watched(out) as progress:
        text, cases, code = gate_command(
            options.config,
            out=out,
            only=options.case,
            regen=options.force_regen,
            shard=options.shard,
            jobs=options.jobs,
            threads=options.threads,
            kind=options.format,
            budget=budget_of(options),
            progress=progress,
        )
    if text is not None:
        sys.stdout.write(text)
        return code
    from rich.console import Console

    from firstdiff.reports.gate import show

    show(cases, Console())
    print(f"\nTraces, verdicts, summary.md and junit.xml: {out}")
    return code
