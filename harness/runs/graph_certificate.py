"""llama.cpp judged by its own graph: every node computed again from what it read, whatever the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firstdiff.engines import ggml
from firstdiff.engines.identity import identity
from firstdiff.engines.llamacpp import Attention, LlamaCpp, version
from firstdiff.engines.llamacpp_capture import difference
from firstdiff.engines.llamacpp_graph import NodeHook
from firstdiff.errors import CaptureError
from firstdiff.judging.nodes import NodeJudge
from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import GGUF, open_gguf
from firstdiff.model.weights import Weights
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.folder import make_folder
from firstdiff.runs.prompt import Input
from firstdiff.runs.recording import changed
from firstdiff.runs.tiers import BELIEVED
from firstdiff.verdict import Verdict

NO_LOGITS = "this model has no logits: no steps were decoded, and whether watching llama.cpp changed it was not checked"


def certify_graph(
    path: Path,
    source: Input,
    out: Path,
    *,
    decode: int,
    threads: int,
    attention: Attention,
    progress: Progress = QUIET,
) -> Verdict:
    """Run llama.cpp and judge every node of its graph on what that node read.

    Parameters
    ----------
    path, source
        The model, of any architecture that llama.cpp runs, and what to run.
    out
        The run's folder, for llama.cpp's log.
    decode
        Steps to decode greedily after the prompt.
    threads, attention
        How llama.cpp computes.

    Raises
    ------
    ModelError
        For a file that cannot be read.
    CaptureError
        Where llama.cpp does not run it.
    """
    progress.say("opening the model")
    gguf = open_gguf(path)
    release = version()  # fails where there is no llama.cpp, before anything is made
    make_folder(out)
    ggml.check_layout()
    weights = Weights(gguf)
    judge = NodeJudge(attention.arithmetic(threads))
    with LlamaCpp(gguf.path, threads=threads, log=out / "llama.cpp.log", attention=attention) as engine:
        if engine.encodes:
            raise CaptureError(
                f"{path}: this model has an encoder and a decoder, as T5 has, and firstdiff runs models with one of "
                "them: take another model"
            )
        hook = NodeHook({name: weights[name] for name in gguf.tensors}, judge.visit)
        steps = [source.ids(engine)]
        _check(gguf, steps[0], engine.n_vocab, decode)
        if (head_dim := _head_dim(gguf)) is not None:
            attention.check(head_dim)
        pieces = tuple(engine.piece(t) for t in steps[0])
        total, widest, position = len(steps[0]) + decode, len(steps[0]), 0
        progress.say("running llama.cpp, and judging each node of its graph")
        judge.watch = progress.layers(_layers(gguf), 1 + decode)
        logits = []
        with engine.context(total, widest, hook) as context:
            for index in range(1 + decode):
                logits.append(context.decode(steps[index], position))
                judge.finish()
                position += len(steps[index])
                generates = any(s.point == "result_output" for s in judge.sites)
                if not generates:
                    break
                if index < decode:
                    steps.append([int(logits[-1][-1].argmax())])
        worst = difference(engine, steps, logits, total, widest) if generates else 0.0
    said = identity(gguf)
    return Verdict(
        candidate="llama.cpp:cpu",
        against="graph:ggml-cpu",
        model={
            "file": gguf.path.name,
            "architecture": _architecture(gguf),
            "layers": _layers(gguf),
            "sha256": said.sha256,
            "llama.cpp": release,
        },
        tokens=tuple(tuple(step) for step in steps),
        arithmetic={"linear": "ggml-cpu", "attention": judge.arithmetic.name, "cache": attention.stated["kv"]},
        sites=tuple(judge.sites),
        notes=(BELIEVED, *([] if generates else [NO_LOGITS]), *([] if worst == 0 else [changed(worst)])),
        pieces=pieces,
    )


def _check(gguf: GGUF, tokens: list[int], n_vocab: int, decode: int) -> None:
    """Refuse tokens that the model cannot run."""
    if not tokens:
        raise ModelError(f"{gguf.path}: no token to run: give a prompt that is not empty, or --tokens")
    wrong = next((t for t in tokens if not 0 <= t < n_vocab), None)
    if wrong is not None:
        raise ModelError(
            f"{gguf.path}: token id {wrong} is outside the vocabulary (0 to {n_vocab - 1}): give ids of this model's "
            "own tokeniser"
        )
    most = gguf.metadata.get(f"{_architecture(gguf)}.context_length")
    if isinstance(most, int) and len(tokens) + decode > most:
        raise ModelError(
            f"{gguf.path}: {len(tokens):,} tokens and {decode:,} decode steps do not fit the model's context of "
            f"{most:,}: give a shorter prompt or fewer decode steps"
        )


def _architecture(gguf: GGUF) -> str:
    name: Any = gguf.metadata.get("general.architecture")
    return name if isinstance(name, str) else "unnamed"


def _head_dim(gguf: GGUF) -> int | None:
    """Numbers per head; None where the file does not say it in one number."""
    name = _architecture(gguf)
    stated, width, heads = (
        gguf.metadata.get(f"{name}.{key}")
        for key in ("attention.key_length", "embedding_length", "attention.head_count")
    )
    if isinstance(stated, int):
        return stated
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None


def _layers(gguf: GGUF) -> int:
    count: Any = gguf.metadata.get(f"{_architecture(gguf)}.block_count")
    return count if isinstance(count, int) and count > 0 else 1
