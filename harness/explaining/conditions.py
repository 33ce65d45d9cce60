"""Under which condition a fault shows: in steps of one token, or in products of one shape or type, and in no others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from firstdiff.dumps import Site
from firstdiff.explaining.collecting import Judged
from firstdiff.model.operations import linear
from firstdiff.model.outline import outline
from firstdiff.model.probe import Call
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
            if s.status in (Status.AGREES, Status.INHERITS) and s.site in self.calls and s.site not in diverging
            and self.calls[s.site].op in ops
        }  # fmt: skip
        for of, told in self._kinds(ops == {linear}):
            here, there = ({of(site, call) for site, call in which.items()} for which in (wrong, right))
            # Where only one point has the shape, or only one step the number of tokens, its own name says more.
            if here and there and not here & there and len(here) <= MOST and len(there) <= MOST:
                return told(sorted(here), sorted(there))
        return None

    def _kinds(
        self,
        products: bool,  # noqa: FBT001 - whether products are meant
    ) -> Iterator[tuple[Callable[[Site, Call], int | str], Callable[[list[int | str], list[int | str]], str]]]:
        steps = self.judged.trace.steps
        yield (
            lambda site, _: "one token" if len(steps[site.step].tokens) == 1 else "several tokens",
            lambda here, _: f"only in steps of {_listed(here)}",
        )
        if products:
            yield (
                lambda _, call: call.argument("weight").shape[-1],
                lambda here, there: (
                    f"only in products over {_listed(here)} inputs, and not in those over {_listed(there)}"
                ),
            )
            yield (
                lambda _, call: call.argument("weight").shape[0],
                lambda here, there: (
                    f"only in products of {_listed(here)} outputs, and not in those of {_listed(there)}"
                ),
            )
            yield (
                lambda _, call: call.argument("weight").kind.name,
                lambda here, there: (
                    f"only in products with {_listed(here)} weights, and not in those with {_listed(there)}"
                ),
            )


def _listed(values: Collection[int | str]) -> str:
    return " or ".join(f"{value:,}" if isinstance(value, int) else value for value in values)
