"""Drift: how far one engine's free run is from another's. Shown, never judged."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from firstdiff.dumps import Site, Step, Trace
from firstdiff.dumps.points import Kind, axes_of, kind_of
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.measure import relative
from firstdiff.judging.rows import counted
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value


@dataclass
class Drift(Probe):
    """Runs freely, and notes how far a trace lies from it at every site. Keeps no tensor but the logits.

    All steps run as one pass, :attr:`all_steps`: what a token sees is the same, and each weight is dequantised once.
    """

    trace: Trace
    alignment: Alignment = field(default_factory=Alignment)
    drifts: dict[Site, float] = field(default_factory=dict, init=False)
    logits: list[Array] = field(default_factory=list, init=False)  # of the last token of each step, [n_vocab]

    @property
    def all_steps(self) -> Step:
        """The tokens and positions of all steps."""
        steps = self.trace.steps
        return Step(tuple(t for s in steps for t in s.tokens), tuple(p for s in steps for p in s.positions))

    def foreseen(self, _call: Call) -> Arithmetic | None:
        """In which arithmetic it computes."""
        return self.arithmetic

    def value(self, call: Call) -> Value:
        """Compute, compare each step's part, and go on with the computed value."""
        computed = call.compute(self.arithmetic)
        stop = 0
        for index, step in enumerate(self.trace.steps):
            start, stop = stop, stop + len(step.tokens)
            site = Site(index, call.layer, call.point)
            if self.alignment.source(site) not in self.trace:
                continue
            own = _of_step(call.point, computed, start, stop)
            recorded, rows, _ = self.alignment.read_rows(self.trace, site, own)
            if recorded is not None:
                seen = counted(call.point, own) if rows is None else rows
                self.drifts[site] = relative(recorded, own, seen)
        if kind_of(call.point) is Kind.LOGITS:
            ends = np.cumsum([len(step.tokens) for step in self.trace.steps])
            self.logits = [computed[end - 1].copy() for end in ends]
        return Value(computed)


def _of_step(point: str, computed: Array, start: int, stop: int) -> Array:
    """What of a value of all tokens belongs to the step of tokens `start` to `stop`."""
    if "query" in axes_of(point):
        return computed[:, start:stop, :stop]
    return computed[:stop] if kind_of(point) is Kind.CACHE else computed[start:stop]


def between(candidate: Trace, other: Trace, alignment: Alignment) -> dict[Site, float]:
    """Drift of every site that both traces hold; the other one is laid out as the reference has it."""
    drifts: dict[Site, float] = {}
    for site in other.sites():
        reference = other[site]
        recorded, rows, _ = alignment.read_rows(candidate, site, reference)
        if recorded is not None:
            seen = counted(site.point, reference) if rows is None else rows
            drifts[site] = relative(recorded, reference, seen)
    return drifts
