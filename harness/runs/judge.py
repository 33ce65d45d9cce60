"""Judging: a candidate's trace in, the verdict out. The only way to judge a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.engines.identity import check_same_tokens, engine_name
from firstdiff.explaining.arithmetic_or_fault import engines_own
from firstdiff.explaining.budget import Budget
from firstdiff.explaining.explanations import explain
from firstdiff.explaining.failures import Failures
from firstdiff.judging.arithmetic import declared, not_taken
from firstdiff.judging.closeup import Details
from firstdiff.judging.drift import between
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.logits import last_logits, logits_against
from firstdiff.judging.partial import padding
from firstdiff.judging.past import begins_told, missing_past
from firstdiff.judging.segment_levels import without_unknown
from firstdiff.judging.sensitivity import sensitivity
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.model.graph.reference import GraphArchitecture
from firstdiff.preflight.agreeing_logits import suspicion
from firstdiff.preflight.dump import not_judged, without
from firstdiff.preflight.unused import unused
from firstdiff.runs.admission import Admitted, admitted
from firstdiff.runs.first_pass import FirstPass, FreeRun, Read, first_pass, free_run
from firstdiff.runs.replaying import replayed, replayed_as_found
from firstdiff.runs.replays import First, Replayed, replayed_in
from firstdiff.runs.run import Run
from firstdiff.runs.tiers import believed
from firstdiff.verdict import CounterCheck, DumpFinding, Explanation, SiteVerdict, Status, Verdict, Witness, broken


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A trace, and the verdict on it."""

    trace: Trace
    verdict: Verdict


@dataclass(frozen=True, slots=True, eq=False)
class _Beside:
    """A run that the candidate's is compared with: whose it is, how far the candidate drifts from it, its logits.

    `free` holds the logits of the last token of each step, `witness` what was found of it where it was judged too.
    """

    against: str
    drifts: dict[Site, float]
    free: list[Array | None]
    witness: Witness | None = None
    sites: tuple[SiteVerdict, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Explained:
    """The sites of a replay as the verdict has them, and why some diverge."""

    done: Replayed
    sites: list[SiteVerdict]
    explanations: tuple[Explanation, ...]
    counter_check: CounterCheck | None

    @property
    def claims(self) -> tuple[int, int]:
        """How many sites diverge, and how many faults are claimed of them; one for what nothing explains."""
        wrong = sum(s.status is Status.DIVERGES for s in self.sites)
        return wrong, sum(len((e.hypothesis or "").split(" + ")) for e in self.explanations)


@np.errstate(all="ignore")  # a candidate's NaN and infinities are judged, not warned of
def judge(
    run: Run,
    candidate: Trace | Admitted,
    *,
    witness: Trace | Admitted | None = None,
    both: bool = False,
    first: FirstPass | None = None,
) -> Verdict:
    """Judge every site of a candidate's trace on its own inputs.

    Parameters
    ----------
    run
        The model, and how it is judged.
    candidate
        The trace to judge. Its input contract is checked, where that has not been done.
    witness
        Another engine's trace of the same tokens, llama.cpp's as a rule. It is judged as well: at a site where it
        leaves the reference too, the reference is not trusted, and the candidate is not judged. Without one the
        reference runs freely beside the candidate, and the verdict holds no witness.
    both
        Whether the verdict is about the witness too: it diverges if either does.
    first
        The first pass over all weights, where it has been made for several candidates together.

    Raises
    ------
    TraceError
        For a trace of another model, of tokens that the model cannot run, or a witness of other tokens.
    """
    candidate = candidate if isinstance(candidate, Admitted) else admitted(run, candidate)
    model = run.model
    if witness is not None:
        witness = witness if isinstance(witness, Admitted) else admitted(run, witness)
        check_same_tokens(candidate.trace, witness.trace)
    first = first or first_pass(run, [(candidate, witness)])
    read, failures = first.read[candidate], Failures()
    run.progress.say(f"judging {engine_name(candidate.trace)}")
    done, dump, trace = _replayed(run, read, failures)
    details = read.details
    beside = (
        _reference(free_run(run, trace, done.alignment, first.free.get(candidate)))
        if witness is None
        else _judged_too(run, witness, trace, done.alignment, first.witnesses[witness], both=both)
    )
    told = _explained(run, trace, dump, done, beside, failures, details)
    done, sites = told.done, told.sites
    logits = tuple(
        logits_against(
            trace,
            done.alignment,
            beside.free,
            (*sites, *beside.sites),
            same_input=not broken(candidate.preflight) and not (beside.witness and beside.witness.broken),
        )
    )
    dump = (*suspicion(sites, logits, beside.drifts, beside.against, len(trace.steps)), *dump)
    padded, wins = padding(trace, done.alignment, model.hp.n_vocab)
    begins = begins_told(missing_past(model, trace))
    verdict = Verdict(
        candidate=engine_name(trace),
        against=beside.against,
        model=described(model) | {"sha256": run.identity.sha256},
        tokens=tuple(step.tokens for step in candidate.trace.steps),
        arithmetic=done.found.stated,
        sites=tuple(sites),
        logits=logits,
        layouts=done.alignment.described(),
        witness=beside.witness,
        preflight=candidate.preflight | ({} if wins is None else {"vocabulary": wins}),
        dump=dump,
        notes=(
            *candidate.notes,
            *begins,
            *padded,
            *filter(None, [not_taken(model, trace)]),
            *done.notes,
            *([believed(model.written)] if isinstance(model.written, GraphArchitecture) else []),
            *(f"witness: {n}" for n in (witness.notes if witness else ())),
        ),
        pieces=candidate.pieces or (witness.pieces if witness else ()),
        explanations=told.explanations,
        counter_check=told.counter_check,
        failed=failures.noted,
        details={} if details is None else {s.site: details.taken[s.site] for s in sites if s.site in details.taken},
    )
    if verdict.verdict != "agrees":
        return verdict
    stated = declared(model, trace) is not None and done.found.instead is None
    claimed = without_unknown(sites, stated=stated)
    return replace(verdict, sensitivity=sensitivity(model, trace, done.found, done.alignment, claimed, done.cut))


def _replayed(run: Run, read: Read, failures: Failures) -> tuple[Replayed, tuple[DumpFinding, ...], Trace]:
    """Replay a trace, and again without the tensors that the engine did not go on with, where there are any."""
    trace, model = read.trace, run.model
    replay = partial(replayed, model, details=read.details, table=run.table, failures=failures, progress=run.progress)
    done = replay(trace, first=read.first)
    more = unused(model, trace, done.found, done.alignment, done.sites)
    if not more:
        return done, read.dump, trace
    trace = without(trace, more)
    return replay(trace), (*read.dump, *more), trace


def _explained(
    run: Run,
    trace: Trace,
    dump: tuple[DumpFinding, ...],
    done: Replayed,
    beside: _Beside,
    failures: Failures,
    details: Details | None,
) -> _Explained:
    """Explain what diverges; where a cause is another arithmetic, see whether the engine may use it everywhere."""
    budget = Budget(run.budget)

    def explained(done: Replayed) -> _Explained:
        settled = _settled(not_judged(done.sites, dump), beside.sites)
        sites = [replace(s, drift=beside.drifts.get(s.site)) for s in settled]
        explanations, check = explain(
            run.model,
            trace,
            done.found,
            done.alignment,
            sites,
            failures=failures,
            table=run.table,
            budget=budget,
            only=next((s.site for s in sites if str(s.site) == run.only), None),
            progress=run.progress.say,
        )
        return _Explained(done, sites, explanations, check)

    first = explained(done)
    own = engines_own(done.found, first.sites, first.explanations, [len(step.tokens) for step in trace.steps])
    if own is None or budget.over:
        return first
    again = replayed_in(run.model, trace, own, done.alignment, run.progress, None)
    if again.diverging > done.diverging or (second := explained(again)).claims >= first.claims:
        return first
    if details is not None:
        replayed_in(run.model, trace, own, done.alignment, run.progress, details)
    return second


def described(model: Model) -> dict[str, object]:
    """What a report says of the model."""
    return {
        "file": model.gguf.path.name,
        "architecture": model.architecture,
        "layers": model.hp.n_layer,
        **({"tier": model.tier} if model.tier == "graph" else {}),
    }


def _reference(free: FreeRun | None) -> _Beside:
    """The reference's own run, where all tokens are known."""
    return (
        _Beside("reference:f32", {}, []) if free is None else _Beside("reference:f32", free.drift.drifts, free.logits)
    )


def _judged_too(
    run: Run, witness: Admitted, candidate: Trace, alignment: Alignment, first: First, *, both: bool
) -> _Beside:
    """Judge the witness, and take its run for the one beside the candidate's, as long as both ran the same tokens."""
    trace, name = witness.trace, engine_name(witness.trace)
    run.progress.say(f"judging {name}")
    sites = replayed_as_found(run.model, trace, run.progress, first=first).sites
    pairs = zip(candidate.steps, trace.steps, strict=True)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0].tokens == pair[1].tokens, pairs))
    return _Beside(
        name,
        {site: drift for site, drift in between(candidate, trace, alignment).items() if site.step < alike},
        [last_logits(trace, step) for step in range(alike)],
        Witness(
            name,
            agrees=sum(s.status in (Status.AGREES, Status.INHERITS) for s in sites),
            diverges=tuple(s.site for s in sites if s.status is Status.DIVERGES),
            broken=broken(witness.preflight),
            judged_too=both,
        ),
        tuple(sites),
    )


def _settled(sites: Sequence[SiteVerdict], witness: Sequence[SiteVerdict]) -> list[SiteVerdict]:
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
