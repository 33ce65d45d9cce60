"""Under which condition a fault shows: in steps of one token, or in products of one shape or type, and in no others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from firstdiff.dumps import Site
from firstdiff.explaining.collecting import Judged
from firstdiff.model.operations import linear
from firstdiff.model.outline import outline
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight
from firstdiff.verdict import Status

MOST = 3
"""Values of a condition that are told."""

LEAST = 2
"""Sites that a condition must hold for: of one site it says nothing."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """What is known of every call of a run, by its site."""

    judged: Judged

    @cached_property
    def calls(self) -> dict[Site, Call]:
        """The calls that were recorded."""
        made = (awaited.call for awaited in outline(self.judged.theirs, self.judged.trace.steps))
        return {Site(call.step, call.layer, call.point): call for call in made if call.point}

    def told(self, faulty: Collection[Site], diverging: Collection[Site]) -> str | None:
        """What all faulty sites have in common and no right one of the same operation has; None where there is nothing.

        Parameters
        ----------
        faulty
            Where the fault is.
        diverging
            Where anything is wrong.
        """
        wrong = {site: self.calls[site] for site in faulty if site in self.calls}
        ops = {call.op for call in wrong.values()}
        if len(wrong) < LEAST or len(ops) != 1:
            return None
        right = {
            s.site: self.calls[s.site]
            for s in self.judged.sites
            if s.status in (Status.AGREES, Status.INHERITS)
            and s.site in self.calls
            and s.site not in diverging
            and self.calls[s.site].op in ops
        }
        return self._of_steps(set(wrong), set(right)) or (_of_products(wrong, right) if ops == {linear} else None)

    def _of_steps(self, wrong: Collection[Site], right: Collection[Site]) -> str | None:
        """By how many tokens a step has, at the same points and layers."""
        steps = [len(step.tokens) for step in self.judged.trace.steps]
        same = {(site.point, site.layer) for site in wrong}
        here = {steps[site.step] for site in wrong}
        there = {steps[site.step] for site in right if (site.point, site.layer) in same}
        if not there or here & there:
            return None
        if here == {1} or there == {1}:
            return None  # where sites are is told by that already
        if min(here) > max(there):
            return f"only in steps of {min(here)} tokens or more: one of {max(there)} is right"
        return f"only in steps of at most {max(here)} tokens" if max(here) < min(there) else None


def _of_products(wrong: Mapping[Site, Call], right: Mapping[Site, Call]) -> str | None:
    """By the shape and the type of the weight."""
    for of, told in _KINDS:
        here, there = ({of(call.argument("weight")) for call in which.values()} for which in (wrong, right))
        if here and there and not here & there and len(here) <= MOST and len(there) <= MOST:
            return told(_listed(sorted(here)), _listed(sorted(there)))
    return None


_KINDS: tuple[tuple[Callable[[Weight], int | str], Callable[[str, str], str]], ...] = (
    (
        lambda weight: int(weight.shape[-1]),
        lambda here, there: f"only in products over {here} inputs, and not in those over {there}",
    ),
    (
        lambda weight: int(weight.shape[0]),
        lambda here, there: f"only in products of {here} outputs, and not in those of {there}",
    ),
    (
        lambda weight: weight.kind.name,
        lambda here, there: f"only in products with {here} weights, and not in those with {there}",
    ),
)
"""What products differ in, the likeliest first."""


def _listed(values: Collection[int | str]) -> str:
    return " or ".join(f"{value:,}" if isinstance(value, int) else value for value in values)
