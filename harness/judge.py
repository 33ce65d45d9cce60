"""Judging: a candidate's trace in, the verdict out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from firstdiff.align import Alignment, align, stated
from firstdiff.detail import Details
from firstdiff.dumps import Site, Trace
from firstdiff.explain import Failures
from firstdiff.explaining import explain, has_faults
from firstdiff.fingerprint import Fingerprint, Levels, declared, fingerprint, fits
from firstdiff.floors import STORED
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model
from firstdiff.progress import QUIET, Progress
from firstdiff.replay import Drift, Replay, between
from firstdiff.verdict import Logits, SiteVerdict, Status, Verdict, Witness


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
    progress.say(f"judging {name(candidate)}")
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
        progress.say(f"judging {name(witness)}")
        _, seen, _ = _replayed(model, witness, progress)
        sites = _settled(sites, seen)
        drifts, against = between(candidate, witness, alignment), name(witness)
        free = [_last_logits(witness, step) for step in range(len(witness.steps))]
    sites = [replace(s, drift=drifts.get(s.site)) for s in sites]
    explanations, counter_check = explain(
        model, candidate, found, alignment, sites, failures=failures, table=table, progress=progress.say
    )
    return Verdict(
        candidate=name(candidate),
        against=against,
        model=described(model) | ({} if sha256 is None else {"sha256": sha256}),
        tokens=tuple(step.tokens for step in candidate.steps),
        arithmetic=found.stated,
        sites=tuple(sites),
        logits=tuple(_logits(candidate, alignment, free)),
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


def name(trace: Trace) -> str:
    """An engine as reports name it: ``llama.cpp:cpu``."""
    engine, backend = trace.engine.get("name", "candidate"), trace.engine.get("backend")
    return f"{engine}:{backend}" if backend else str(engine)


def described(model: Model) -> dict[str, object]:
    """What a report says of the model."""
    return {
        "file": model.gguf.path.name,
        "architecture": model.architecture,
        "layers": model.hp.n_layer,
    }


@np.errstate(all="ignore")
def replayed(
    model: Model,
    candidate: Trace,
    *,
    details: Details | None = None,
    table: Mapping[str, Hypothesis] = TABLE,
    failures: Failures | None = None,
    progress: Progress = QUIET,
) -> tuple[Fingerprint, list[SiteVerdict], Alignment]:
    """Replay a candidate in its arithmetic; at its own layers' level only where that hides no fault."""
    found, sites, alignment = _replayed(model, candidate, progress, details)
    noted = Failures() if failures is None else failures
    if found.levels and has_faults(model, candidate, found, alignment, sites, failures=noted, table=table):
        found = replace(found, levels=Levels())
        sites = _replay(model, candidate, found, alignment, progress, details)
    return found, sites, alignment


def _replayed(
    model: Model, trace: Trace, progress: Progress, details: Details | None = None
) -> tuple[Fingerprint, list[SiteVerdict], Alignment]:
    """Replay in the arithmetic that the trace declares, or in float32, or in what is found from the data.

    Layouts and arithmetics are searched for only where the first guess does not do. What was stored in a narrow dtype
    fits float32 for that alone, whatever it was computed in: it is no guess that does.
    """
    stands = declared(model, trace)
    first = Fingerprint(stands or F32)
    alignment = stated(trace)
    sites = _replay(model, trace, first, alignment, progress, details)
    if _misread(sites, trace):
        other = align(model, trace, alignment)
        if other != alignment:
            alignment = other
            sites = _replay(model, trace, first, alignment, progress, details)
    if fits(sites) and (stands is not None or not _narrow(trace)):
        return first, sites, alignment
    found = fingerprint(model, trace, alignment)
    if stands is not None and not found.better:
        return first, sites, alignment
    if stands is not None and found.arithmetic != stands:
        found = replace(found, instead=stands.name)
    same = found.arithmetic == first.arithmetic and not found.levels
    return found, sites if same else _replay(model, trace, found, alignment, progress, details), alignment


def _narrow(trace: Trace) -> bool:
    """Whether most of a trace's sites were stored in fewer digits than float32 has."""
    narrow = [trace.dtype(site) in STORED for site in trace]
    return 2 * sum(narrow) > len(narrow)


def _replay(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    progress: Progress,
    details: Details | None,
) -> list[SiteVerdict]:
    if details is not None:
        details.clear()
    probe = Replay(found.arithmetic, trace, alignment, found.levels, details)
    probe.watch = progress.layers(model.hp.n_layer, len(trace.steps))
    for _ in model.forward(trace.steps, probe):
        pass
    return probe.sites


def _misread(sites: list[SiteVerdict], trace: Trace) -> bool:
    """Whether a point does not fit its shape, or its numbers at most of its layers, or is one the reference has not."""
    if {site.point for site in trace.sites()} - {site.point for site in sites}:
        return True
    if any(site.status is Status.NOT_COMPARABLE for site in sites):
        return True
    odd: dict[str, list[bool]] = {}
    for site in sites:
        if site.status is not Status.NOT_RECORDED:
            odd.setdefault(site.point, []).append(site.status is Status.DIVERGES)
    return any(2 * sum(values) > len(values) for values in odd.values())


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
    return Witness(name(trace), agrees, tuple(s.site for s in sites if s.status is Status.DIVERGES))


def _last_logits(trace: Trace, step: int) -> Array | None:
    site = Site(step, None, "result_output")
    return trace[site][-1] if site in trace else None


def _logits(candidate: Trace, alignment: Alignment, free: list[Array | None]) -> list[Logits]:
    pairs: list[tuple[int, Array | None, Array | None]] = []
    for step, other in enumerate(free):
        if other is not None:
            like = np.broadcast_to(other, (len(candidate.steps[step].tokens), len(other)))
            own, _ = alignment.read(candidate, Site(step, None, "result_output"), like)
            pairs.append((step, None if own is None else own[-1], other))
    return [
        compare_logits(step, own, other)
        for step, own, other in pairs
        if own is not None and other is not None and own.shape == other.shape and np.isfinite(own).all()
    ]


def compare_logits(step: int, candidate: Array, against: Array) -> Logits:
    """The last token's logits [n_vocab] of a step, compared before any sampler."""
    c, a = np.asarray(candidate, np.float64), np.asarray(against, np.float64)
    top, other = int(c.argmax()), int(a.argmax())
    rival = top if top != other else int(np.where(np.arange(len(a)) == other, -np.inf, a).argmax())
    log_p, log_q = a - _log_sum(a), c - _log_sum(c)
    difference = c - a
    return Logits(
        step=step,
        top1=top,
        top1_against=other,
        margin=float(a[other] - a[rival]),
        kl=max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum())),
        noise=float((difference - difference.mean()).std()),
    )


def _log_sum(x: Array) -> float:
    top = x.max()
    return float(top + np.log(np.exp(x - top).sum()))
