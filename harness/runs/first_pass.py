"""The pass over all weights that everybody makes together who is judged in one run.

These are all passes of a verdict:

- Layouts and arithmetic of a candidate are sought in a handful of its layers, where no trace states them.
- One pass is for everybody: the candidates, the witness, the reference's own run. It is this module's.
- A candidate is replayed once more where that pass shows that it must be read in another way: in another arithmetic, at
  the levels of unknown operations, without tensors that its engine did not go on with.
- Explaining runs what it needs of the sites that diverge, and the counter-check is a replay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from firstdiff.dumps import Trace
from firstdiff.engines.identity import engine_name
from firstdiff.judging.closeup import Details
from firstdiff.judging.drift import Drift
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.passes import Pass
from firstdiff.judging.past import missing_past
from firstdiff.model.arithmetic import F32, Array
from firstdiff.preflight.dump import readings
from firstdiff.runs.admission import Admitted
from firstdiff.runs.planning import planned
from firstdiff.runs.replaying import replayed_as_found
from firstdiff.runs.replays import First, run_passes
from firstdiff.runs.run import Run
from firstdiff.verdict import DumpFinding


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A candidate as it was read: what was found in its dump, what that holds, and its first replay."""

    dump: tuple[DumpFinding, ...]
    trace: Trace
    first: First
    details: Details | None


@dataclass(frozen=True, slots=True, eq=False)
class FreeRun:
    """The reference's own run beside a candidate that was read in some layouts."""

    trace: Trace
    alignment: Alignment
    drift: Drift

    @property
    def logits(self) -> list[Array | None]:
        """Those of the last token of each step; None for a model that has none."""
        return [*self.drift.logits] or [None for _ in self.trace.steps]


@dataclass(frozen=True, slots=True, eq=False)
class FirstPass:
    """What the pass gave of each candidate and witness."""

    read: dict[Admitted, Read] = field(default_factory=dict)
    witnesses: dict[Admitted, First] = field(default_factory=dict)
    free: dict[Admitted, FreeRun] = field(default_factory=dict)


def first_pass(run: Run, subjects: Sequence[tuple[Admitted, Admitted | None]]) -> FirstPass:
    """Make the pass for candidates, each with its witness, if it has one."""
    made, passes = FirstPass(), []
    _say(run, [of for of, _ in subjects])
    for candidate, witness in subjects:
        dump, trace = as_read(run, candidate.trace)
        details = Details.of(trace) if run.detailed else None
        first = First(planned(run.model, trace, run.progress, details), details)
        made.read[candidate] = Read(dump, trace, first, details)
        passes += first.passes(run.model)
        if witness is None and not missing_past(run.model, trace):
            free = made.free[candidate] = FreeRun(trace, first.plan.alignment, Drift(F32, trace, first.plan.alignment))
            passes.append(Pass(run.model, [free.drift.all_steps], free.drift))
        if witness is not None and witness not in made.witnesses:
            first = made.witnesses[witness] = First(planned(run.model, witness.trace, run.progress, None), None)
            passes += first.passes(run.model)
    run_passes(run.model, passes, run.progress)
    return made


def free_run(run: Run, trace: Trace, alignment: Alignment, made: FreeRun | None) -> FreeRun | None:
    """The reference's own run beside a trace as it was read at last; None where not all tokens are known."""
    if missing_past(run.model, trace):
        return None
    if made is not None and made.trace is trace and made.alignment == alignment:
        return made
    run.progress.say("running the reference")
    drift = Drift(F32, trace, alignment)
    run_passes(run.model, [Pass(run.model, [drift.all_steps], drift)], run.progress)
    return FreeRun(trace, alignment, drift)


def _say(run: Run, candidates: Iterable[Admitted]) -> None:
    names = dict.fromkeys(engine_name(candidate.trace) for candidate in candidates)
    run.progress.say(f"judging {', '.join(names)}")


def as_read(run: Run, trace: Trace) -> tuple[tuple[DumpFinding, ...], Trace]:
    """What is found in a dump, and what it holds: of several readings the first at which least diverges."""
    found = list(readings(run.model, trace))
    if len(found) == 1:
        return found[0]
    diverging: list[int] = []
    for _, of in found:
        diverging.append(replayed_as_found(run.model, of, run.progress).diverging)
        if not diverging[-1]:
            break
    return found[diverging.index(min(diverging))]
