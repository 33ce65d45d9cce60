"""Replays of all of a trace, or of a part: in given layouts and a given arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from firstdiff.dumps import Site, Trace
from firstdiff.judging import selections
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.judging.closeup import Details
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.needed import Wanted
from firstdiff.judging.partial import Cut, rows_told
from firstdiff.judging.passes import Pass, together
from firstdiff.judging.past import missing_past
from firstdiff.judging.replay import Replay
from firstdiff.judging.segment_levels import told
from firstdiff.model.engine import Model
from firstdiff.progress import Progress
from firstdiff.verdict import SiteVerdict, Status


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A trace's sites judged, and the arithmetic and layouts that they were judged in.

    `cut` are the tensors that have other rows than their step has tokens, `close` those where experts may have been
    others, and for how many tokens.
    """

    found: Fingerprint
    sites: list[SiteVerdict]
    alignment: Alignment
    cut: Mapping[Site, Cut] = field(default_factory=dict)
    close: Mapping[Site, int] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Fingerprint, probe: Replay) -> Self:
        """What a replay that has been run gave."""
        cut = {site: probe.cut[site] for site in sorted(probe.cut, key=probe.place)}
        close = {site: probe.close[site] for site in sorted(probe.close, key=probe.place)}
        return cls(found, probe.settled(), probe.alignment, cut, close)

    def among(self, wanted: Wanted) -> Replayed:
        """The same of some sites alone."""
        return replace(self, sites=[s for s in self.sites if wanted(s.site)])

    @property
    def diverging(self) -> int:
        """How many sites diverge."""
        return sum(s.status is Status.DIVERGES for s in self.sites)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how the trace was read."""
        chosen = selections.told(self.close)
        return (*rows_told(self.cut), *told(self.found.levels.segments), *chosen, *self.found.notes)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """In which arithmetic and layouts all of a trace is replayed first.

    Parameters
    ----------
    trace, found, alignment
        The trace, and what is known of it.
    done
        Its sites, where all of them have been judged for that.
    stated
        Whether the arithmetic is the one that the trace states, and its numbers have not been asked.
    settled
        Whether what is found is kept, whatever the replay shows.
    """

    trace: Trace
    found: Fingerprint
    alignment: Alignment
    done: Replayed | None = None
    stated: bool = False
    settled: bool = False


class First:
    """The first replay of all of a trace, which can be made together with those of others."""

    def __init__(self, plan: Plan, details: Details | None) -> None:
        self.plan = plan
        self._probe = None if plan.done else Replay.of(plan.found, plan.trace, plan.alignment, details=details)

    def passes(self, model: Model) -> list[Pass]:
        """What is to be run; nothing where it has been."""
        if self._probe is None:
            return []
        trace = self.plan.trace
        return [Pass(model, trace.steps, self._probe, past=missing_past(model, trace))]

    @property
    def done(self) -> Replayed:
        """What it gave."""
        if self._probe is None:
            assert self.plan.done is not None
            return self.plan.done
        return Replayed.of(self.plan.found, self._probe)


def replayed_in(
    model: Model,
    trace: Trace,
    found: Fingerprint,
    alignment: Alignment,
    progress: Progress,
    details: Details | None,
    wanted: Wanted | None = None,
) -> Replayed:
    """Replay in a given arithmetic and given layouts, all sites or the `wanted` ones."""
    if details is not None:
        details.clear()
    probe = Replay.of(found, trace, alignment, details=details)
    run_passes(model, [Pass(model, trace.steps, probe, wanted, missing_past(model, trace))], progress)
    return Replayed.of(found, probe)


def run_passes(model: Model, passes: Sequence[Pass], progress: Progress) -> None:
    """Make passes together, and show at which layer they are."""
    for each in passes[:1]:
        each.probe.watch = progress.layers(model.hp.n_layer)
    together(passes)
