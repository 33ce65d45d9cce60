"""Two recorded traces of the same tokens, judged with each other as witness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from firstdiff.dumps import open_trace
from firstdiff.engines.identity import check_same_tokens, check_trace, identity, named_model
from firstdiff.model.engine import open_model
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.judge import judge
from firstdiff.verdict import Verdict


def diff(a: Path, b: Path, model: Path | None, *, progress: Progress = QUIET) -> Verdict:
    """Judge trace `a`, with trace `b` as the witness; the verdict diverges where either does.

    Raises
    ------
    UsageError
        Where no model is given and `a` names none that is there: nothing can be judged without the weights.
    TraceError
        For a trace that cannot be read, of another model, or of other tokens.
    """
    candidate, witness = open_trace(a), open_trace(b)
    opened = open_model(model or named_model(candidate))
    said = identity(opened)
    for trace in (candidate, witness):
        check_trace(trace, opened, said)
    check_same_tokens(candidate, witness)
    verdict = judge(opened, candidate, witness=witness, sha256=said["sha256"], progress=progress)
    return replace(verdict, witness=replace(verdict.witness, judged_too=True)) if verdict.witness else verdict
