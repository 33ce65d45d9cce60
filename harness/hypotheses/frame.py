"""A candidate's own layout: a hypothesis is run on the call as the candidate makes it, and the result laid back.

No claim rests on it yet: a scene's frame is the reference's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call


def _same_call(call: Call) -> Call:
    return call


def _same_array(x: Array) -> Array:
    return x


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """How a candidate lays out what one call works on and gives; by default as the reference does.

    Parameters
    ----------
    own
        Makes the candidate's call of the reference's: on the candidate's rows, with the attributes that these need.
    there, back
        Lay the call's result out as the candidate has it, and as the reference has it.
    """

    own: Callable[[Call], Call] = _same_call
    there: Callable[[Array], Array] = _same_array
    back: Callable[[Array], Array] = _same_array

    def laid_back(self, call: Call) -> Call:
        """One of the candidate's calls, with its result as the reference has it."""
        if self.back is _same_array:
            return call
        op, back = call.op, self.back

        def compute(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
            return back(op(*inputs, arithmetic=arithmetic, **attributes))

        return replace(call, op=Derived(op, compute, sizes=back))


AS_THE_REFERENCE = Frame()
