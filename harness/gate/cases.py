"""The gate: every case of a firstdiff.toml judged, and held to its limits and to its baseline."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from firstdiff.dumps import TraceError
from firstdiff.engines.identity import identity
from firstdiff.engines.threads import threads_for
from firstdiff.engines.user_engine import Engine
from firstdiff.errors import UNREADABLE, UsageError, exit_code, told
from firstdiff.explaining.budget import SECONDS
from firstdiff.gate.against_baseline import beside
from firstdiff.gate.baseline import baseline_of, check_model, check_prompt, read_baseline
from firstdiff.gate.cluster import on_cluster
from firstdiff.gate.config import LLAMA, GateCase, GateConfig
from firstdiff.gate.kept import keep_case, kept_case, key_of
from firstdiff.gate.limits import held
from firstdiff.gate.side_by_side import side_by_side
from firstdiff.model.gguf import open_gguf
from firstdiff.model.workers import physical_cores, workers
from firstdiff.progress import QUIET, Progress
from firstdiff.runs import candidates, certificate
from firstdiff.runs.folder import FILE, keep_verdict
from firstdiff.runs.judge import Judged
from firstdiff.runs.pages import report_of
from firstdiff.runs.prompt import PROMPT, Input
from firstdiff.runs.run import Run, begun
from firstdiff.verdict.gated import Checked
from firstdiff.verdict.provenance import own_version

INCOMPARABLE = 4  # the exit code
ENDED = (
    "the process that judged this case ended before it was done: 'firstdiff gate {} --case {}' judges it alone, and"
    " shows what ends it"
)
SAME = "every tensor is to the bit what it was in the baseline: the judgement changed, not the engine"


def run_gate(
    config: GateConfig,
    *,
    out: Path,
    only: Sequence[str] = (),
    shard: tuple[int, int] = (1, 1),
    jobs: int = 1,
    on: str | None = None,
    regen: bool = False,
    resume: bool = False,
    threads: int | None = None,
    budget: float = SECONDS,
    progress: Progress = QUIET,
) -> list[Checked]:
    """Run a gate's cases; a case that cannot be run fails alone.

    Parameters
    ----------
    config
        See :func:`firstdiff.gate.config.read_config`.
    out
        Folder for traces, verdicts and pages, a folder a case.
    only
        Names of cases; none for all.
    shard
        Which part of the cases is run, and of how many: each case is in one of the parts.
    jobs
        How many cases are judged side by side, in processes of their own. What comes out does not depend on it.
    on
        The address of a cluster that judges them in place of this machine: ``dask://HOST:PORT``.
    regen
        Write every baseline anew.
    resume
        Take cases that were judged in `out` before, with the same files, options and versions, as they were judged.
    threads
        Threads of llama.cpp.
    budget
        Seconds that explaining may take in each case.
    progress
        Shows which case is judged, and at which layer.

    Raises
    ------
    UsageError
        For a name in `only` that no case has.
    """
    known = {case.name: case for case in config.cases}
    for name in only:
        if name not in known:
            raise UsageError(f"--case {name!r:.80}: no such case (there are {', '.join(known)})")
    part, parts = shard
    cases = ([known[name] for name in only] or list(config.cases))[part - 1 :: parts]
    judged = partial(_judged_in, config=config, out=out, regen=regen, resume=resume, threads=threads, budget=budget)
    if on is not None:
        return _ended(on_cluster(cases, partial(_sent, judged), on), cases, config, progress, f"on {on}")
    if jobs > 1 and len(cases) > 1:
        ended = side_by_side(cases, partial(_sent, partial(judged, jobs=jobs), jobs=jobs), jobs)
        return _ended(ended, cases, config, progress, f"{jobs:,} at a time")
    done = []
    for number, case in enumerate(cases, 1):
        progress.part(f"{case.name} ({number} of {len(cases)})" if len(cases) > 1 else case.name)
        done.append(judged(case, progress=progress))
    return done


def _ended(
    ended: Iterable[tuple[int, Checked | None]],
    cases: Sequence[GateCase],
    config: GateConfig,
    progress: Progress,
    how: str,
) -> list[Checked]:
    """Give the results of cases that other processes judge, in the order of the cases."""
    done: dict[int, Checked] = {}
    progress.say(f"{len(cases):,} cases, {how}")
    for number, result in ended:
        name = cases[number].name
        done[number] = result or Checked(name, None, (ENDED.format(config.path, name),), UNREADABLE)
        progress.say(f"{len(done):,} of {len(cases):,} cases, {how}")
    return [done[number] for number in range(len(cases))]


def _sent(judged: Callable[[GateCase], Checked], case: GateCase, jobs: int = 1) -> Checked:
    """A case as it comes from another process: its page is written there, and the details that are in it stay."""
    with workers(max(1, physical_cores() // jobs)):
        done = judged(case)
    return done if done.verdict is None else replace(done, verdict=replace(done.verdict, details={}))


def _judged_in(case: GateCase, *, out: Path, **how: Any) -> Checked:  # noqa: ANN401 - as check_case has it
    return check_case(case, out=out / case.name, **how)


def check_case(
    case: GateCase,
    config: GateConfig,
    *,
    out: Path,
    regen: bool,
    resume: bool = False,
    threads: int | None = None,
    budget: float = SECONDS,
    progress: Progress = QUIET,
    jobs: int = 1,
) -> Checked:
    """Run one case, beside others where there are several `jobs`; what goes wrong is its result."""
    try:
        return _kept_or_checked(_Run(case, config, out, regen, threads, budget, progress, jobs), resume=resume)
    except Exception as e:
        code = exit_code(e)
        if code is None:
            raise
        return Checked(case.name, None, (told(e),), code)


@dataclass(frozen=True, slots=True)
class _Run:
    case: GateCase
    config: GateConfig
    out: Path
    regen: bool
    threads: int | None
    budget: float
    progress: Progress
    jobs: int

    @property
    def baseline(self) -> Path:
        return self.config.baseline / f"{self.case.name}.json"


def _kept_or_checked(run: _Run, *, resume: bool) -> Checked:
    """What came out of the case before, where that is wanted and nothing has changed since; or what does now."""
    key = _key(run)
    if resume:
        with contextlib.suppress(TraceError):  # there is none, or it is of something else
            return kept_case(run.out, key)
    done = _checked(run)
    keep_case(run.out, done, key)
    return done


def _key(run: _Run) -> str:
    said = identity(open_gguf(run.case.model))
    threads = threads_for(run.case.model, run.threads, jobs=run.jobs)
    beside = None if run.regen else run.baseline
    return key_of(run.case, run.config, said, beside, regen=run.regen, threads=threads, budget=run.budget)


def _checked(run: _Run) -> Checked:
    judging = begun(
        run.case.model,
        out=run.out,
        threads=threads_for(run.case.model, run.threads, jobs=run.jobs),
        detailed=True,  # for the page, if it fails: SmolLM2 takes 2 s in place of 1
        progress=run.progress,
        budget=run.budget,
    )
    said = judging.identity
    was = None
    if run.baseline.exists() and not run.regen:
        was = read_baseline(run.baseline)
        check_model(run.baseline, was, said)
    judged = _judged(run, judging)
    verdict = keep_verdict(run.out, judged.verdict, ["gate", str(run.config.path), "--case", run.case.name])
    failures, notes = held(verdict, run.config.limits)
    if verdict.verdict == "incomparable":
        return Checked(run.case.name, verdict, failures, INCOMPARABLE, None, notes, str(run.out / FILE))
    changes = None
    if was is None and verdict.broken:
        notes = (*notes, "no baseline is written of a run whose input contract does not hold")
    else:
        now = baseline_of(verdict, judged.trace, said, made_by=own_version())
        if was is not None and "tokens" not in verdict.broken:
            check_prompt(run.baseline, was, now.prompt)
        more, changes = beside(run.baseline, was, now, regen=run.regen)
        failures = (*failures, *more)
        if changes is not None and changes.worsened and changes.same == changes.common:
            notes = (*notes, SAME)
    if was is not None and was.made_by != own_version():
        notes = (*notes, f"the baseline was made by firstdiff {was.made_by}, and this is {own_version()}")
    report = report_of(verdict, run.out, passes=not failures)
    return Checked(run.case.name, verdict, failures, 1 if failures else 0, changes, notes, report)


def _judged(run: _Run, judging: Run) -> Judged:
    """Judge the case's engine or trace."""
    case = run.case
    given = case.prompt
    source = Input() if given is None else Input(given.tokens, given.text, given.chat, given.special)
    if case.command == LLAMA:
        return certificate.certify(judging, source, decode=case.decode)
    engine = None
    if case.command is not None:
        if source == Input():
            source = Input(prompt=PROMPT)
        folder = run.config.path.absolute().parent
        engine = Engine(case.command, case.decode, run.config.timeout, folder)
    traces = [] if case.trace is None else [case.trace]
    (judged,) = candidates.judge_candidates(judging, traces, source, engine=engine, names=run.config.names)
    return judged
