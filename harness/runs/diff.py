"""Two recorded traces of the same tokens, judged with each other as witness."""

from __future__ import annotations

from pathlib import Path

from firstdiff.dumps import open_trace
from firstdiff.engines.identity import named_model
from firstdiff.explaining.budget import SECONDS
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.judge import judge
from firstdiff.runs.run import begun
from firstdiff.verdict import Verdict


def diff(a: Path, b: Path, model: Path | None, *, progress: Progress = QUIET, budget: float = SECONDS) -> Verdict:
    """Judge trace `a`, with trace `b` as the witness; the verdict diverges where either does.

    Raises
    ------
    UsageError
        Where no model is given and `a` names none that is there: nothing can be judged without the weights.
    TraceError
        For a trace that cannot be read, of another model, or of other tokens.
    """
    candidate, witness = open_trace(a), open_trace(b)
    run = begun(model or named_model(candidate), progress=progress, budget=budget)
    return judge(run, candidate, witness=witness, both=True)
