"""Candidates' traces, or the user's engine, judged with llama.cpp as a witness."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from firstdiff.dumps import Trace, TraceError, open_trace
from firstdiff.engines.identity import check_trace, identity
from firstdiff.engines.llamacpp import PLAIN, Attention, LlamaCpp, version
from firstdiff.engines.user_engine import Engine, engine_trace
from firstdiff.errors import CaptureError, UsageError
from firstdiff.model.engine import Model, open_model
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.folder import make_folder
from firstdiff.runs.judge import judge
from firstdiff.runs.prompt import Input, tokens_of
from firstdiff.runs.recording import record_llama
from firstdiff.verdict import Verdict


def judge_candidates(
    path: Path,
    candidates: Sequence[Path],
    source: Input,
    *,
    engine: Engine | None = None,
    names: str | None = None,
    threads: int,
    out: Path,
    attention: Attention = PLAIN,
    detailed: bool = False,
    progress: Progress = QUIET,
) -> list[Verdict]:
    """Judge candidates' traces, with llama.cpp on the same tokens as a witness where it is installed.

    Parameters
    ----------
    path
        The GGUF file.
    candidates
        Traces to judge.
    source
        What was run, for traces that hold no tokens, and for `engine`.
    engine
        The user's engine, to be run first; its dump is judged like any other.
    names
        How the traces' names are to be understood: see :func:`firstdiff.dumps.open_trace`.
    attention
        llama.cpp's options, as the witness.
    detailed
        See :func:`firstdiff.runs.judge.judge`.
    threads, out, progress
        As elsewhere.
    """
    progress.say("opening the model")
    model = open_model(path)
    told = source.tokens is not None or source.prompt is not None
    tokens = tokens_of(model, source) if told or engine is not None else None
    traces = [_opened(candidate, tokens if told else None, source, names) for candidate in candidates]
    ran: dict[str, str] = {}
    if engine is not None:
        assert tokens is not None
        progress.say("")  # what the engine prints begins on a line of its own
        trace, ran = _run_engine(model, engine, tokens, names, out)
        traces.append(trace)
    said = identity(model)
    for trace in traces:
        check_trace(trace, model, said)
    make_folder(out)
    checks = [_preflight(model, trace, source, said) for trace in traces]
    if engine is not None:  # a text that is given is compared as a text
        checks[-1] |= {check: says for check, says in ran.items() if check != "tokens" or source.prompt is None}
    return _judge_all(
        model,
        traces,
        checks,
        said,
        threads=threads,
        attention=attention,
        out=out,
        detailed=detailed,
        progress=progress,
    )


def _opened(path: Path, tokens: Sequence[int] | None, source: Input, names: str | None) -> Trace:
    """Open a trace; ids on the command line must be its own, a text is compared with its own by preflight."""
    if tokens is None or source.tokens is not None:
        return open_trace(path, tokens=tokens, names=names)
    try:
        return open_trace(path, names=names)
    except TraceError:
        return open_trace(path, tokens=tokens, names=names)


def _preflight(model: Model, trace: Trace, source: Input, said: dict[str, Any]) -> dict[str, str]:
    """Check the input contract; the text that was run is known only where it is given."""
    from firstdiff.preflight.check import preflight

    if source.prompt is None:
        return preflight(model, trace, sha256=said["sha256"])
    with LlamaCpp(model.gguf.path, vocabulary_only=True) as engine:
        return preflight(
            model,
            trace,
            engine=engine,
            text=source.prompt,
            chat=source.chat,
            special=source.special,
            sha256=said["sha256"],
        )


def _judge_all(
    model: Model,
    traces: Sequence[Trace],
    checks: Sequence[dict[str, str]],
    said: dict[str, Any],
    *,
    threads: int,
    attention: Attention,
    out: Path,
    detailed: bool,
    progress: Progress,
) -> list[Verdict]:
    pairs = list(zip(traces, checks, strict=True))
    judged = partial(judge, model, sha256=said["sha256"], detailed=detailed, progress=progress)
    try:
        version()
    except CaptureError as e:
        alone = f"judged against the reference alone: {e}"
        return [judged(trace, preflight=check, notes=(*_unknown(trace), alone)) for trace, check in pairs]
    verdicts = []
    seen: dict[tuple[tuple[int, ...], ...], tuple[Trace, tuple[str, ...], tuple[str, ...]]] = {}
    for trace, check in pairs:
        steps = tuple(step.tokens for step in trace.steps)
        if steps not in seen:
            progress.say("recording llama.cpp")
            folder = out / ("llama.cpp" if not seen else f"llama.cpp-{len(seen) + 1}")
            seen[steps] = record_llama(
                model, steps, folder, threads=threads, attention=attention, said=said, progress=progress
            )
        witness, notes, pieces = seen[steps]
        notes = (*_unknown(trace), *notes)
        verdicts.append(judged(trace, witness=witness, preflight=check, notes=notes, pieces=pieces))
    return verdicts


def _unknown(trace: Trace) -> tuple[str, ...]:
    """Say that names were not understood: their tensors are not judged, and count as not recorded."""
    if not trace.unknown:
        return ()
    first = next((name for name in trace.unknown if name.nearest is not None), trace.unknown[0])
    perhaps = "" if first.nearest is None else f", perhaps {first.nearest}"
    count = len(trace.unknown)
    said = "1 name is" if count == 1 else f"{count:,} names are"
    dump = "" if trace.path is None else f": 'firstdiff names {trace.path}' lists them"
    return (f"{said} not understood, such as {first.name}{perhaps}{dump}",)


def _run_engine(
    model: Model, engine: Engine, tokens: Sequence[int], names: str | None, out: Path
) -> tuple[Trace, dict[str, str]]:
    """See :func:`firstdiff.engines.user_engine.engine_trace`; a folder that is made for nothing is removed."""
    model.check_tokens(tokens, decode=engine.decode)
    was_there = out.exists()
    make_folder(out)
    try:
        return engine_trace(engine, model=model.gguf.path, tokens=tokens, names=names, dump=out / "engine")
    except (CaptureError, UsageError):
        if not was_there:
            with suppress(OSError):  # something is in it
                out.rmdir()
        raise
