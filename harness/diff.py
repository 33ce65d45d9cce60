"""Two recorded traces of the same tokens, judged with each other as witness."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from firstdiff.dumps import Trace, TraceError, open_trace
from firstdiff.errors import UsageError
from firstdiff.judge import judge
from firstdiff.model.engine import open_model
from firstdiff.progress import QUIET, Progress
from firstdiff.run import check_trace, identity
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


def named_model(trace: Trace) -> Path:
    """The model's file that a trace names, if it is there.

    Raises
    ------
    UsageError
        If it names none that is.
    """
    path = Path(str(trace.model.get("path") or trace.model.get("file") or ""))
    if not path.is_file():
        raise UsageError(f"{trace.path}: names no model that is here: give it with --model")
    return path


def check_same_tokens(a: Trace, b: Trace) -> None:
    """Refuse two traces of different tokens.

    Raises
    ------
    TraceError
        With the first difference.
    """
    if len(a.steps) != len(b.steps):
        raise TraceError(
            f"{b.path}: has {len(b.steps)} steps, and {a.path} {len(a.steps)}: record both from the same tokens"
        )
    for index, (x, y) in enumerate(zip(a.steps, b.steps, strict=True)):
        if x.tokens != y.tokens:
            place = next(
                (i for i, (s, t) in enumerate(zip(x.tokens, y.tokens, strict=False)) if s != t),
                min(len(x.tokens), len(y.tokens)),
            )
            raise TraceError(
                f"{b.path}: its tokens differ from those of {a.path} at step {index}, place {place} "
                f"({list(y.tokens[place : place + 3])} for {list(x.tokens[place : place + 3])}): "
                "record both from the same tokens"
            )
