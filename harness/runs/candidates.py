"""Candidates' traces, or the user's engine, judged with llama.cpp as a witness."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from firstdiff.dumps import Trace, open_trace
from firstdiff.engines.llamacpp import version
from firstdiff.engines.user_engine import Engine, EngineTrace, engine_trace
from firstdiff.errors import CaptureError, UsageError
from firstdiff.judging.past import missing_past
from firstdiff.runs.admission import Admitted, admitted
from firstdiff.runs.first_pass import first_pass
from firstdiff.runs.judge import Judged, judge
from firstdiff.runs.prompt import Input, tokens_of, vocabulary_of
from firstdiff.runs.recording import record_llama
from firstdiff.runs.run import Run


def judge_candidates(
    run: Run, candidates: Sequence[Path], source: Input, *, engine: Engine | None = None, names: str | None = None
) -> list[Judged]:
    """Judge candidates' traces, with llama.cpp on the same tokens as a witness where it is installed.

    Parameters
    ----------
    run
        The model, how it is judged, and the folder for what is recorded.
    candidates
        Traces to judge.
    source
        What was run, for traces that hold no tokens, and for `engine`.
    engine
        The user's engine, to be run first; its dump is judged like any other, after `candidates`.
    names
        How the traces' names are to be understood: see :func:`firstdiff.dumps.open_trace`.

    Raises
    ------
    TraceError
        For a trace that cannot be read, or :func:`firstdiff.runs.admission.admitted` refuses.
    CaptureError
        Where the engine leaves nothing that can be read, or llama.cpp is needed for a text and is not installed.
    """
    told = source.tokens is not None or source.prompt is not None
    reads_text = source.prompt is not None or (engine is not None and source.tokens is None)
    with vocabulary_of(run.model) if reads_text else nullcontext() as vocabulary:
        tokens = tokens_of(run.model, source, vocabulary) if told or engine is not None else None
        traces = [_opened(candidate, tokens if told else None, source, names) for candidate in candidates]
        ran = None
        if engine is not None:
            assert tokens is not None
            ran = _run_engine(run, engine, tokens, names)
            traces.append(ran.trace)
        subjects = [admitted(run, trace, source, vocabulary) for trace in traces]
    if ran is not None:  # a text that is given is compared as a text
        said = {check: says for check, says in ran.checks.items() if check != "tokens" or source.prompt is None}
        subjects[-1] = replace(subjects[-1], preflight=subjects[-1].preflight | said)
    return _beside_llama(run, subjects)


def _opened(path: Path, tokens: Sequence[int] | None, source: Input, names: str | None) -> Trace:
    """Open a trace; ids on the command line must be its own, a text is compared with its own by preflight."""
    if source.tokens is not None:
        return open_trace(path, tokens=tokens, names=names)
    return open_trace(path, otherwise=tokens, names=names)


def _beside_llama(run: Run, subjects: Sequence[Admitted]) -> list[Judged]:
    """Judge traces, each beside llama.cpp on its tokens: recorded once for all that ran the same."""
    folder = run.folder()
    try:
        version()
    except CaptureError as e:
        alone = f"witness: none, judged against the reference only: {e}"
        return _judged(run, [(replace(subject, notes=(*subject.notes, alone)), None) for subject in subjects])
    seen: dict[tuple[tuple[int, ...], ...], Admitted] = {}
    pairs: list[tuple[Admitted, Admitted | None]] = []
    for subject in subjects:
        if missing_past(run.model, subject.trace):  # what went before is not known, so that nobody can run it
            pairs.append((subject, None))
            continue
        steps = tuple(step.tokens for step in subject.trace.steps)
        if steps not in seen:
            run.progress.say("recording llama.cpp")
            seen[steps] = record_llama(run, steps, folder / ("llama.cpp" if not seen else f"llama.cpp-{len(seen) + 1}"))
        pairs.append((subject, seen[steps]))
    return _judged(run, pairs)


def _judged(run: Run, pairs: Sequence[tuple[Admitted, Admitted | None]]) -> list[Judged]:
    """Judge candidates, each with its witness; they go through the weights together."""
    first = first_pass(run, pairs)
    return [Judged(subject.trace, judge(run, subject, witness=witness, first=first)) for subject, witness in pairs]


def _run_engine(run: Run, engine: Engine, tokens: Sequence[int], names: str | None) -> EngineTrace:
    """See :func:`firstdiff.engines.user_engine.engine_trace`; a folder that is made for nothing is removed."""
    run.model.check_tokens(tokens, decode=engine.decode)
    run.progress.say("")  # what the engine prints begins on a line of its own
    was_there = run.out is not None and run.out.exists()
    folder = run.folder()
    try:
        return engine_trace(engine, model=run.model.gguf.path, tokens=tokens, names=names, dump=folder / "engine")
    except (CaptureError, UsageError):
        if not was_there:
            with suppress(OSError):  # something is in it
                folder.rmdir()
        raise
