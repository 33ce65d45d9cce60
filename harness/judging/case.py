"""A diverging site with all that is needed to run it again: the case that an explanation is sought for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.judging.floors import ROUNDED, passed_on
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.moves import MOVES
from firstdiff.model.probe import Call
from firstdiff.model.value import Value


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A call that was computed, since its value was not recorded."""

    call: Call
    value: Value


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A diverging site.

    Parameters
    ----------
    site
        Which.
    call
        The reference's call, on the candidate's inputs.
    recorded, computed
        What the candidate has, NaN in rows that it did not record, and what the call gives.
    error, floor
        The local error, and what it would be in a correct engine.
    noise
        The error that the candidate shows where it is right.
    seen
        Entries that count, or rows that are recorded [token, 1]; None for all.
    segment
        Calls since the last recorded values, which may be what is wrong.
    half
        Whether `recorded` was stored in f16, and computed in more: beyond its range it is infinite then.
    stored, inputs
        The floor of what storing takes from the value, and took from its inputs: 2.5 times a rounding at its largest.
    arithmetic
        What the candidate computes this step in.
    """

    site: Site
    call: Call
    recorded: Array
    computed: Array
    error: float
    floor: float
    noise: float
    seen: npt.NDArray[np.bool_] | None
    segment: tuple[Done, ...]
    half: bool = False
    stored: float = 0.0
    inputs: float = 0.0
    arithmetic: Arithmetic | None = None

    @property
    def direct(self) -> bool:
        """Whether the judged call is the only one since the last recorded values that computes anything."""
        return all(done.call.op in MOVES for done in self.segment)

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call that may be wrong, the judged one last."""
        return (*(done.call for done in self.segment), self.call)

    def bar(self, arithmetic: Arithmetic, call: Call) -> float:
        """The residual up to which a hypothesis explains: at most a few times what is seen where nothing is wrong.

        What is seen is more where the hypothesis' `call` enlarges its inputs' rounding more than the right one does, as
        a softmax of scores without their factor. Results that are rounded to a narrow dtype may be rounded the other
        way by a sum in another order.
        """
        noise = max(NOISE * self.noise, ROUNDED.get(arithmetic.weights_and_results or "", 0.0) / OTHER_WAY)
        if self.inputs:
            more, right = (passed_on(arithmetic, of, self.inputs) for of in (call, self.call))
            noise *= max(1.0, more / right)
        return min(self.floor, self.error / CLEARLY, max(PLAIN, noise, self.stored / 2))


PLAIN = 1e-5
"""Floors of float64, float32 and ggml-cpu at one operation lie below it, and are taken as they are."""

CLEARLY = 4.0
"""What explains leaves less of the error than this part, however wide the floor is."""

OTHER_WAY = 4.0
"""What a rounding changes at most, over what is left where one number in 64 is rounded the other way."""

DOUBTFUL = 10.0
"""Floors up to which an error may be the rounding of our own sums: they are then summed in float64 before anything is
said. On SmolLM2's ffn_out-1 at 2,048 tokens ours were 1.4e-6 off, where llama.cpp's were right."""


NOISE = 4.0
"""A residual may be so many times the median of the same point's other sites: below it a hypothesis is as right as they
are. The floor of a dump stored in bf16 lies far above that, where wrong hypotheses fit too."""
