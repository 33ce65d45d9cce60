"""What judges goes on with recorded values: of a pass only what some sites need must be run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import numpy as np

from firstdiff.dumps import Site
from firstdiff.model.probe import Call, Probe
from firstdiff.model.shapes import shape_of
from firstdiff.model.value import Value

Wanted = Callable[[Site], bool]
"""Which sites are wanted. A silent call has no site: it runs where a wanted site needs it."""


class Judging(Probe):
    """A probe that goes on with the candidate's recorded values."""

    def run(self, call: Call) -> Value:
        """Return the value of a call; nothing is computed of what went before a trace begins."""
        if call.step >= 0:
            return super().run(call)
        shape = shape_of(call)
        if shape is None:
            shape = call.compute(self.arithmetic).shape
        return self.unknown(call, shape)

    def unknown(self, _call: Call, shape: tuple[int, ...]) -> Value:
        """Stand in for what was computed before the trace begins, which nobody knows."""
        return Value(np.full(shape, np.nan, np.float32))

    @abstractmethod
    def known(self, call: Call) -> Value | None:
        """Return the value to go on with where the recording gives it, whatever the call computes; or else None.

        Only the shapes of the call's inputs are known yet.
        """
