"""llama.cpp against the reference: the certificate that both can be trusted on a model."""

from __future__ import annotations

from firstdiff.runs.judge import Judged, judge
from firstdiff.runs.prompt import Input
from firstdiff.runs.recording import record_llama
from firstdiff.runs.run import Run


def certify(run: Run, source: Input, *, decode: int) -> Judged:
    """Record llama.cpp into the run's folder and judge it: the certificate that both can be trusted on a model."""
    assert run.out is not None, "llama.cpp's trace is kept"
    run.progress.say("recording llama.cpp")
    recorded = record_llama(run, source, run.out / "llama.cpp", decode=decode)
    return Judged(recorded.trace, judge(run, recorded))
