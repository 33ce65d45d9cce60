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
from firstdiff.errors import UsageError
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
    on: str | None = None,
    resume: bool = False,
    history: Path | None = None,
    threads: int | None,
    kind: str,
    budget: float,
    progress: Progress,
) -> tuple[str | None, list[Checked], int]:
    """Run a gate and keep what :func:`keep_all` does beside its cases.

    Returns
    -------
    What is printed in the format `kind` (None for ``text``), the cases, and the worst of their exit codes.
    """
    read = read_config(config)
    cases = run_gate(
        read,
        out=out,
        only=only,
        shard=shard,
        jobs=jobs,
        on=on,
        regen=regen,
        resume=resume,
        threads=threads,
        budget=budget,
        progress=progress,
    )
    progress.end()
    text, code = keep_all(cases, out, kind=kind, every=[case.name for case in read.cases], history=history)
    return text, cases, code


def keep_all(
    cases: Sequence[Checked], out: Path, *, kind: str, every: Sequence[str], history: Path | None
) -> tuple[str | None, int]:
    """Write ``gate.json``, ``summary.md``, ``junit.xml`` and ``index.html`` into a folder.

    On GitHub (``$GITHUB_ACTIONS``) the annotations go to stderr, which is part of the log that GitHub reads.

    Parameters
    ----------
    cases, every
        What was judged, and the names of all cases of the gate.
    kind
        What is to be printed; None for ``text``, which is printed apart.
    history
        A file that the run is added to, and whose runs the page shows.

    Returns
    -------
    What is printed, and the exit code.
    """
    from firstdiff.gate.history import add_run
    from firstdiff.reports import sweep

    past = [] if history is None else [(run.time, run.version, run.cases) for run in add_run(history, cases)]
    links = {c.case: os.path.relpath(c.report, out) for c in cases if c.report is not None}
    text = {"json": to_json(cases, every)} | {name: written(cases, name) for name in ("markdown", "junit")}
    files = {
        "gate.json": text["json"],
        "summary.md": text["markdown"],
        "junit.xml": text["junit"],
        "index.html": sweep.render(cases, links, past),
    }
    for name, content in files.items():
        keep(out / name, content)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from firstdiff.reports.annotations import lines

        sys.stderr.writelines(f"{line}\n" for line in lines(cases))
    if kind == "html":
        text[kind] = written(cases, kind)
    return text.get(kind), max((c.code for c in cases), default=0)


def gate(options: argparse.Namespace) -> int:
    """Judge every case of a firstdiff.toml, and hold it to limits and baselines."""
    out = options.out or run_folder(options.config)
    if options.resume and options.out is None:
        raise UsageError("--resume: give the folder of the earlier run with --out")
    with watched(out) as progress:
        text, cases, code = gate_command(
            options.config,
            out=out,
            only=options.case,
            regen=options.force_regen,
            shard=options.shard,
            jobs=options.jobs,
            on=options.on,
            resume=options.resume,
            history=options.history,
            threads=options.threads,
            kind=options.format,
            budget=budget_of(options),
            progress=progress,
        )
    return show_all(text, cases, code, out)


def show_all(text: str | None, cases: Sequence[Checked], code: int, out: Path) -> int:
    """Print what a gate found, and return its exit code."""
    if text is not None:
        sys.stdout.write(text)
        return code
    from rich.console import Console

    from firstdiff.reports.gate import show

    show(cases, Console())
    if resumed := sum(c.resumed for c in cases):
        print(f"\nJudged in an earlier run, and taken from there: {resumed:,} of {len(cases):,}.")
    print(f"\nTraces, verdicts, index.html, summary.md and junit.xml: {out}")
    return code
