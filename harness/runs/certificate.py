"""llama.cpp against the reference: the certificate that both can be trusted on a model."""

from __future__ import annotations

from pathlib import Path

from firstdiff.engines.identity import identity
from firstdiff.engines.llamacpp import PLAIN, Attention
from firstdiff.model.engine import open_model
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.judge import judge
from firstdiff.runs.prompt import Input
from firstdiff.runs.recording import record_llama
from firstdiff.verdict import Verdict


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
