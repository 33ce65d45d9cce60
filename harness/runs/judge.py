"""Judging: a candidate's trace in, the verdict out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from firstdiff.dumps import Trace
from firstdiff.engines.identity import engine_name
from firstdiff.explaining.explanations import explain
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.judging.closeup import Details
from firstdiff.judging.drift import Drift, between
from firstdiff.judging.logits import last_logits, logits_against
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.replaying import replayed, replayed_as_found
from firstdiff.verdict import SiteVerdict, Status, Verdict, Witness


@np.errstate(all="ignore")  # a candidate's NaN and infinities are judged, not warned of
def judge(
    model: Model,
    candidate: Trace,
    *,
    witness: Trace | None = None,
    preflight: dict[str, str] | None = None,
    notes: tuple[str, ...] = (),
    pieces: tuple[str, ...] = (),
    table: Mapping[str, Hypothesis] = TABLE,
    sha256: str | None = None,
    detailed: bool = False,
    progress: Progress = QUIET,
) -> Verdict:
    """Judge every site of a candidate's trace on its own inputs.

    Parameters
    ----------
    model
        The model that the trace was made with.
    candidate
        The trace to judge.
    witness
        Another engine's trace of the same tokens, llama.cpp's as a rule. It is judged as well: at a site where it
        leaves the reference too, the reference is not trusted, and the candidate is not judged.
    preflight, notes, pieces
        Passed on into the verdict.
    table
        The hypotheses by which divergences are explained.
    sha256
        Of the model's file, for the verdict to state.
    detailed
        Take the closer look at each site that a page shows.
    progress
        Shows what is being done, and at which layer.
    """
    progress.say(f"judging {engine_name(candidate)}")
    details = Details() if detailed else None
    failures = Failures()
    found, sites, alignment = replayed(
        model, candidate, details=details, table=table, failures=failures, progress=progress
    )
    if witness is None:
        progress.say("running the reference")
        drift = Drift(F32, candidate, alignment)
        drift.watch = progress.layers(model.hp.n_layer)
        (logits,) = model.forward([drift.all_steps], drift)
        ends = np.cumsum([len(step.tokens) for step in candidate.steps])
        free = [logits[end - 1] for end in ends]
        drifts, against = drift.drifts, "reference:f32"
    else:
        progress.say(f"judging {engine_name(witness)}")
        _, seen, _ = replayed_as_found(model, witness, progress)
        sites = _settled(sites, seen)
        drifts, against = between(candidate, witness, alignment), engine_name(witness)
        free = [last_logits(witness, step) for step in range(len(witness.steps))]
    sites = [replace(s, drift=drifts.get(s.site)) for s in sites]
    explanations, counter_check = explain(
        model, candidate, found, alignment, sites, failures=failures, table=table, progress=progress.say
    )
    return Verdict(
        candidate=engine_name(candidate),
        against=against,
        model=described(model) | ({} if sha256 is None else {"sha256": sha256}),
        tokens=tuple(step.tokens for step in candidate.steps),
        arithmetic=found.stated,
        sites=tuple(sites),
        logits=tuple(logits_against(candidate, alignment, free)),
        layouts=alignment.described(),
        witness=None if witness is None else _witness(witness, seen),
        preflight=preflight or {},
        notes=(*candidate.notes, *found.notes, *notes),
        pieces=pieces,
        explanations=explanations,
        counter_check=counter_check,
        failed=failures.noted,
        details={} if details is None else details.taken,
    )


def described(model: Model) -> dict[str, object]:
    """What a report says of the model."""
    return {
        "file": model.gguf.path.name,
        "architecture": model.architecture,
        "layers": model.hp.n_layer,
    }


def _settled(sites: list[SiteVerdict], witness: list[SiteVerdict]) -> list[SiteVerdict]:
    """Where the witness leaves the reference too, the reference may be wrong: no ground to accuse the candidate."""
    doubtful = {w.site: w.local_error for w in witness if w.status is Status.DIVERGES}
    return [
        replace(
            s,
            status=Status.NOT_COMPARABLE,
            reason=f"the witness leaves the reference here too (local error {doubtful[s.site]:.2g}): "
            "the reference may be wrong",
        )
        if s.status is Status.DIVERGES and s.site in doubtful
        else s
        for s in sites
    ]


def _witness(trace: Trace, sites: list[SiteVerdict]) -> Witness:
    agrees = sum(s.status in (Status.AGREES, Status.INHERITS) for s in sites)
    return Witness(engine_name(trace), agrees, tuple(s.site for s in sites if s.status is Status.DIVERGES))
