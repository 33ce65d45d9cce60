"""What is checked of a trace before any tensor of it is judged."""

from __future__ import annotations

from dataclasses import dataclass

from firstdiff.dumps import Trace
from firstdiff.engines.identity import check_trace
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.judging.matching import matched
from firstdiff.preflight.check import preflight
from firstdiff.runs.prompt import Input
from firstdiff.runs.run import Run


@dataclass(frozen=True, slots=True, eq=False)
class Admitted:
    """A trace of the run's model, and what is known of it before any tensor is judged.

    Parameters
    ----------
    trace
        The trace.
    preflight
        What each check of the input contract says: see :func:`firstdiff.preflight.check.preflight`.
    notes
        What a reader should know of the trace.
    pieces
        The text of each token of step 0, where a tokeniser was at hand.
    """

    trace: Trace
    preflight: dict[str, str]
    notes: tuple[str, ...] = ()
    pieces: tuple[str, ...] = ()


def admitted(run: Run, trace: Trace, source: Input | None = None, vocabulary: LlamaCpp | None = None) -> Admitted:
    """Check that a trace is of the run's model, and its input contract.

    Parameters
    ----------
    run, trace
        The run, and the trace that shall be judged in it, or be a witness.
    source
        What was meant to be run; its text is compared with the trace's tokens.
    vocabulary
        The model, open in llama.cpp; without it no text is compared.

    Raises
    ------
    TraceError
        For a trace of another model, of tokens that the model cannot run, or with weights that cannot be read.
    CaptureError
        Where llama.cpp does not tokenise the text.
    """
    source = source or Input()
    check_trace(trace, run.model, run.identity)
    trace = matched(run.model, trace)
    checks = preflight(
        run.model,
        trace,
        engine=vocabulary,
        text=source.prompt,
        chat=source.chat,
        special=source.special,
        sha256=run.identity.sha256,
    )
    pieces = () if vocabulary is None else tuple(vocabulary.piece(t) for t in trace.steps[0].tokens)
    return Admitted(trace, checks, (*trace.notes, *_unknown(trace)), pieces)


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
