"""The main job: record llama.cpp, judge it or a candidate against the reference, and keep everything in a folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from firstdiff.capture import capture
from firstdiff.dumps import Trace, TraceError, TraceWriter, open_trace
from firstdiff.engine_trace import Engine, engine_trace
from firstdiff.errors import CaptureError, UsageError
from firstdiff.folders import make_folder
from firstdiff.judge import judge
from firstdiff.llamacpp import PLAIN, Attention, LlamaCpp, version
from firstdiff.model.arithmetic import ARITHMETICS, Arithmetic, arithmetic_named
from firstdiff.model.engine import Model, open_model
from firstdiff.model.errors import ModelError
from firstdiff.progress import QUIET, Progress
from firstdiff.provenance import own_version
from firstdiff.record import Planted, record_reference
from firstdiff.verdict import Verdict

PROMPT = (
    "A stitch in time saves nine, they say; but what does it save when 1,234 stitches are needed, "
    "the thread is short, and nobody remembers who asked for the coat?"
)
"""What is run where nothing else is asked for: over 32 tokens, with digits and punctuation."""

LONG = 2048
"""Tokens of ``--long``: from some 2,000 on, frequency factors and the precision of angles show in every pair."""


@dataclass(frozen=True, slots=True)
class Input:
    """What to run: token ids, or a text to tokenise.

    Parameters
    ----------
    tokens
        Token ids; given, they are used as they are.
    prompt
        A text, tokenised by llama.cpp.
    chat
        Put the text into the model's chat template.
    special
        Add the tokens that the model wants around a text, and read control tokens written in it.
    long
        Run a text of our own of `LONG` tokens, or of half as many as the context holds, where that is less.
    """

    tokens: tuple[int, ...] | None = None
    prompt: str | None = None
    chat: bool = False
    special: bool = True
    long: bool = False

    def ids(self, engine: LlamaCpp) -> list[int]:
        """Token ids, by llama.cpp's tokeniser where they are not given."""
        if self.tokens is not None:
            return list(self.tokens)
        text = PROMPT if self.prompt is None else self.prompt
        if self.long:
            text = "\n".join(f"{number}. {PROMPT}" for number in range(1, LONG // 16))
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise UsageError(f"--prompt: character {e.start} of the text is no UTF-8: give it in UTF-8") from None
        ids = engine.tokenize(engine.chat(text) if self.chat else text, special=self.special)
        return ids[:LONG] if self.long else ids


def run_folder(model: Path) -> Path:
    """A folder that is not there yet, for a run to keep its traces in."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{model.stem}"
    base = Path("firstdiff-runs")
    return next(p for n in range(1000) if not (p := base / (stem + (f"-{n}" if n else ""))).exists())


def identity(model: Model) -> dict[str, Any]:
    """What a trace says of its model: file name and SHA-256 (of a split model, of its parts' digests)."""
    digests = []
    for part in model.gguf.files:
        with part.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(d.digest() for d in digests))
    return {"file": model.gguf.path.name, "sha256": whole.hexdigest()}


def record_llama(
    model: Model,
    source: Input | Sequence[Sequence[int]],
    out: Path,
    *,
    decode: int = 0,
    threads: int = 1,
    attention: Attention = PLAIN,
    said: dict[str, Any] | None = None,
    progress: Progress = QUIET,
) -> tuple[Trace, tuple[str, ...], tuple[str, ...]]:
    """Record llama.cpp's CPU backend into a folder.

    Parameters
    ----------
    model
        The model, opened by the reference, which has checked the file before llama.cpp sees it.
    source
        What to run, or the tokens of each step of a candidate.
    out
        Folder of the trace; llama.cpp's chatter goes to ``<out>.log``.
    decode
        Steps to decode after a prompt.
    threads
        Threads that llama.cpp computes with.
    attention
        Its options of attention.
    said
        :func:`identity` of the model.
    progress
        Shows at which layer the run is.

    Returns
    -------
    The trace, notes on the capture, and the text of each token of step 0.
    """
    steps = [_tokens(model, source)] if isinstance(source, Input) else [list(s) for s in source]
    model.check_tokens([t for s in steps for t in s], decode=decode)
    attention.check(model.hp.head_dim)
    release = version()  # fails where there is no llama.cpp, before anything is made
    make_folder(out.parent)
    log = out.with_name(out.name + ".log")
    with LlamaCpp(model.gguf.path, threads=threads, log=log, attention=attention) as engine:
        said_engine = {
            "name": "llama.cpp",
            "version": release,
            "backend": "cpu",
            "arithmetic": attention.arithmetic(threads).name,
            "options": {"threads": threads, **attention.stated, "repacked_weights": False},
        }
        with TraceWriter(out, engine=said_engine, model=said or identity(model)) as writer:
            watch = progress.layers(model.hp.n_layer, max(1 + decode, len(steps)))
            worst = capture(engine, steps[0], writer, nodes=model.nodes, decode=decode, forced=steps[1:], watch=watch)
        pieces = tuple(engine.piece(t) for t in steps[0])
    notes = () if worst == 0 else (_changed(worst),)
    return open_trace(out), notes, pieces


def _changed(worst: float | None) -> str:
    if worst is None:
        return "llama.cpp's logits are not finite: whether recording changed them cannot be told"
    return f"recording changed llama.cpp's own logits, by up to {worst:.2g}: its trace is not quite its plain run"


def certify(
    path: Path,
    source: Input,
    *,
    decode: int,
    threads: int,
    out: Path,
    attention: Attention = PLAIN,
    detailed: bool = False,
    progress: Progress = QUIET,
) -> Verdict:
    """Record llama.cpp and judge it against the reference: the certificate that both can be trusted on a model."""
    progress.say("opening the model")
    model = open_model(path)
    progress.say("recording llama.cpp")
    said = identity(model)
    trace, notes, pieces = record_llama(
        model,
        source,
        out / "llama.cpp",
        decode=decode,
        threads=threads,
        attention=attention,
        said=said,
        progress=progress,
    )
    return judge(
        model,
        trace,
        notes=notes,
        pieces=pieces,
        sha256=said["sha256"],
        detailed=detailed,
        progress=progress,
    )


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
        See :func:`firstdiff.judge.judge`.
    threads, out, progress
        As elsewhere.
    """
    progress.say("opening the model")
    model = open_model(path)
    told = source.tokens is not None or source.prompt is not None
    tokens = _tokens(model, source) if told or engine is not None else None
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
    from firstdiff.preflight import preflight

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
    """See :func:`firstdiff.engine_trace.engine_trace`; a folder that is made for nothing is removed."""
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


def _tokens(model: Model, source: Input) -> list[int]:
    """Token ids of what to run; llama.cpp is asked only where there is a text."""
    if source.tokens is not None:
        return list(source.tokens)
    with LlamaCpp(model.gguf.path, vocabulary_only=True) as engine:
        ids = source.ids(engine)
    return ids[: model.hp.n_ctx_train // 2] if source.long else ids


def check_trace(trace: Trace, model: Model, said: dict[str, Any]) -> None:
    """Refuse a trace that states another model than `said`, or holds tokens that the model cannot run.

    Raises
    ------
    TraceError
        With both checksums, or the token.
    """
    theirs = trace.model.get("sha256")
    if isinstance(theirs, str) and theirs.lower() != said["sha256"]:
        raise TraceError(
            f"{trace.path}: is a trace of another model ({trace.model.get('file', 'unnamed')!s:.80}, "
            f"sha256 {theirs:.12}…) than {said['file']} (sha256 {said['sha256']:.12}…): give the model it was made with"
        )
    try:
        model.check_tokens([t for step in trace.steps for t in step.tokens])
    except ModelError as e:
        raise TraceError(f"{trace.path}: its tokens cannot be run: {e}") from None


def record(
    path: Path,
    source: Input | Sequence[Sequence[int]],
    out: Path,
    *,
    engine: str,
    decode: int,
    threads: int,
    attention: Attention = PLAIN,
    planted: Sequence[Planted] = (),
    progress: Progress = QUIET,
) -> Trace:
    """Record one engine's run: ``llama.cpp:cpu``, or ``reference:`` and an arithmetic.

    See :func:`firstdiff.model.arithmetic.arithmetic_named`. `source` may be the tokens of each step, in place of what
    to run and to decode from.
    """
    progress.say("opening the model")
    model = open_model(path)
    for plant in planted:
        if plant.layer is not None and plant.layer >= model.hp.n_layer and not plant.hypothesis.outside_layers:
            raise UsageError(
                f"--bug {plant.hypothesis.id}: there is no layer {plant.layer}: {path.name} has layers 0 to "
                f"{model.hp.n_layer - 1}"
            )
    name, _, rest = engine.partition(":")
    progress.say(f"recording {engine}")
    if name == "llama.cpp" and rest in ("", "cpu"):
        if planted:
            raise UsageError("--bug: faults are planted in the reference, not in llama.cpp: give --engine reference")
        trace, _, _ = record_llama(
            model, source, out, decode=decode, threads=threads, attention=attention, progress=progress
        )
        return trace
    if attention != PLAIN:
        raise UsageError("--flash-attention and --kv are llama.cpp's: give --engine reference:ggml-cpu+flash+kv=q8_0")
    arithmetic = _arithmetic(rest or "f64") if name == "reference" else None
    if arithmetic is None:
        known = ", ".join(["llama.cpp:cpu", *(f"reference:{a}" for a in ARITHMETICS)])
        raise UsageError(f"--engine {engine}: no such engine (there are {known})")
    tokens, *forced = [_tokens(model, source)] if isinstance(source, Input) else source
    model.check_tokens([*tokens, *(t for step in forced for t in step)], decode=decode)
    said_engine = {
        "name": "reference",
        "version": own_version(),
        "backend": rest or "f64",
        "arithmetic": arithmetic.name,
    }
    with TraceWriter(out, engine=said_engine, model=identity(model)) as writer:
        record_reference(
            model,
            tokens,
            writer,
            arithmetic=arithmetic,
            decode=decode,
            forced=forced,
            planted=planted,
            progress=progress,
        )
    return open_trace(out)


def _arithmetic(name: str) -> Arithmetic | None:
    with suppress(ModelError):
        return arithmetic_named(name)
    return None
