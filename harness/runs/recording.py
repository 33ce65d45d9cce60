"""Recording an engine into a folder: llama.cpp, or the reference."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from firstdiff.dumps import Trace, TraceWriter, open_trace
from firstdiff.engines.identity import identity
from firstdiff.engines.llamacpp import PLAIN, Attention, LlamaCpp, version
from firstdiff.engines.llamacpp_capture import capture, greedy, written
from firstdiff.engines.llamacpp_points import PointHook
from firstdiff.engines.opening import open_reference
from firstdiff.engines.threads import threads_for
from firstdiff.errors import UsageError
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.model.arithmetic import ARITHMETICS, Arithmetic, arithmetic_named
from firstdiff.model.errors import ModelError
from firstdiff.model.graph.reference import GraphArchitecture
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.admission import Admitted, admitted
from firstdiff.runs.folder import make_folder
from firstdiff.runs.prompt import Input, tokens_of
from firstdiff.runs.run import Run
from firstdiff.verdict.provenance import own_version


def record_llama(run: Run, source: Input | Sequence[Sequence[int]], out: Path, *, decode: int = 0) -> Admitted:
    """Record llama.cpp's CPU backend into a folder.

    Parameters
    ----------
    run
        The model, opened by the reference, which has checked the file before llama.cpp sees it; the threads that
        llama.cpp computes with, and its options of attention.
    source
        What to run, or the tokens of each step of a candidate.
    out
        Folder of the trace; llama.cpp's chatter goes to ``<out>.log``.
    decode
        Steps to decode after a prompt.

    Returns
    -------
    The trace, with notes on the capture and the text of each token of step 0.
    """
    model, attention = run.model, run.attention
    if model.tier == "graph" and attention != PLAIN:
        raise UsageError(
            "--flash-attention and --kv: llama.cpp's graph is followed with plain attention and a cache in f16: leave "
            "them out"
        )
    steps = [tokens_of(model, source)] if isinstance(source, Input) else [list(s) for s in source]
    threads = threads_for(model.gguf.path, run.threads, tokens=max(map(len, steps)))
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
        with TraceWriter(out, engine=said_engine, model=run.identity.stated) as writer:
            watch = run.progress.layers(model.hp.n_layer, max(1 + decode, len(steps)))
            if isinstance(model.written, GraphArchitecture):
                steps = greedy(engine, steps, decode)
                hook = PointHook(model.written.prepare(steps), watch)
                worst = written(engine, hook, steps[0], writer, forced=steps[1:])
            else:
                nodes, forced = model.nodes, steps[1:]
                worst = capture(engine, steps[0], writer, nodes=nodes, decode=decode, forced=forced, watch=watch)
        pieces = tuple(engine.piece(t) for t in steps[0])
    recorded = admitted(run, open_trace(out))
    notes = recorded.notes if worst == 0 else (*recorded.notes, changed(worst))
    return replace(recorded, notes=notes, pieces=pieces)


def changed(worst: float | None) -> str:
    """Say that recording changed llama.cpp's logits, by up to so much."""
    if worst is None:
        return "llama.cpp's logits are not finite: whether recording changed them cannot be told"
    return f"recording changed llama.cpp's own logits, by up to {worst:.2g}: its trace is not quite its plain run"


def record(
    path: Path,
    source: Input | Sequence[Sequence[int]],
    out: Path,
    *,
    engine: str,
    decode: int,
    threads: int | None,
    attention: Attention = PLAIN,
    planted: Sequence[Planted] = (),
    progress: Progress = QUIET,
) -> Trace:
    """Record one engine's run: ``llama.cpp:cpu``, or ``reference:`` and an arithmetic.

    See :func:`firstdiff.model.arithmetic.arithmetic_named`. `source` may be the tokens of each step, in place of what
    to run and to decode from.
    """
    progress.say("opening the model")
    model = open_reference(path)
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
        run = Run(model, threads=threads, attention=attention, progress=progress)
        return record_llama(run, source, out, decode=decode).trace
    if attention != PLAIN:
        raise UsageError("--flash-attention and --kv are llama.cpp's: give --engine reference:ggml-cpu+flash+kv=q8_0")
    arithmetic = _arithmetic(rest or "f64") if name == "reference" else None
    if arithmetic is None:
        known = ", ".join(["llama.cpp:cpu", *(f"reference:{a}" for a in ARITHMETICS)])
        raise UsageError(f"--engine {engine}: no such engine (there are {known})")
    tokens, *forced = [tokens_of(model, source)] if isinstance(source, Input) else source
    model.check_tokens([*tokens, *(t for step in forced for t in step)], decode=decode)
    said_engine = {
        "name": "reference",
        "version": own_version(),
        "backend": rest or "f64",
        "arithmetic": arithmetic.name,
    }
    with TraceWriter(out, engine=said_engine, model=identity(model).stated) as writer:
        record_planted(
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
