"""How large a change must be to be seen at a judged site: the site's operations run again with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from firstdiff.dumps import Site
from firstdiff.dumps.points import axes_of
from firstdiff.judging.changes import AIM, Place
from firstdiff.judging.measure import measure
from firstdiff.judging.rows import Mask
from firstdiff.judging.traced import Upstream
from firstdiff.model.arithmetic import F32, GGML, Arithmetic, Array
from firstdiff.model.attention import soft_max
from firstdiff.model.operations import linear, rope
from firstdiff.model.probe import Call
from firstdiff.model.terms import terms
from firstdiff.model.value import Value

ROWS = 64
"""Rows of scores and of what goes into a product that are looked at: more would take a tenth of a verdict's time."""

MOST = 1e6
"""The largest share that is told: nobody has a number wrong by more."""

ATTEMPTS = 12
"""Changes that are tried at one place. A change that acts in proportion takes two."""

COARSER = 8.0
"""How much larger the next change is, while numbers of few bits are rounded back to what they were."""

NEAR = 1.05
"""How near a change has to come that does not act in proportion any more, as a factor."""

BISECTIONS = 4
"""They find a share to a fifth of itself."""


@dataclass(frozen=True)
class Chain:
    """The calls since the last recorded values, the judged one last, on what the candidate's inputs make of them.

    Nothing is rounded to less than float32: what a change does would drown in it. `values` stand for the results in
    what the calls read, `right` are the results, and `seen` the entries of the last one that count. `steps` is the
    arithmetic in which a number is rounded before it is used, if it is, so that what it changes grows in steps.
    """

    calls: tuple[Call, ...]
    values: tuple[Value, ...]
    right: tuple[Array, ...]
    seen: Mask | None
    steps: Arithmetic | None = None

    @classmethod
    def of(cls, call: Call, seen: Mask | None, rows: Mask | None, arithmetic: Arithmetic) -> Chain:
        """The chain of a judged call; of many rows the last ones, where that is all it takes to compute them."""
        pending = Upstream.of(call).pending
        operand = {linear: "x", soft_max: "kq"}.get(call.op)
        if not pending and rows is None and operand is not None:
            x = call.argument(operand)
            call = call.with_arguments(**{operand: x[-ROWS:] if call.op is linear else x[:, -ROWS:]})
            seen = None if seen is None else seen[-ROWS:]
        steps = None if pending else _steps(call, arithmetic)
        values = (*(done.value for done in pending), Value(np.empty(0)))
        calls: list[Call] = []
        right: dict[Value, Array] = {}
        for each, value in zip((*(done.call for done in pending), call), values, strict=True):
            calls.append(each.with_inputs(right))
            right[value] = calls[-1].compute(steps or F32)
        return cls(tuple(calls), values, tuple(right.values()), seen, steps)

    @cached_property
    def sizes(self) -> Array | None:
        """The sizes of the terms that the judged result is a sum of."""
        return terms(self.calls[-1])

    def error(self, number: int, wrong: Array) -> float:
        """The local error of the judged call where the call of a number gives something else."""
        new = {self.values[number]: wrong}
        for value, call in zip(self.values[number + 1 :], self.calls[number + 1 :], strict=True):
            fed = call.with_inputs(new)
            if fed is not call:
                new[value] = fed.compute(F32)
        right = self.right[-1]
        axes = axes_of(self.calls[-1].point, right.ndim)
        given = new.get(self.values[-1], right)
        return measure(given, right, axes=axes, floor=0.0, seen=self.seen, terms=lambda: self.sizes).error

    def smallest(self, place: Place) -> float:
        """The smallest share at a place that is seen for certain; infinite where none is."""
        number = next(n for n, call in enumerate(self.calls) if call.point and site_of(call) == place.site)
        call, right = self.calls[number], self.right[number]

        def error(share: float) -> float:
            return self.error(number, place.change.make(call, right, share, self.steps or F32))

        needed = (place.judged.floor or 0.0) + (place.judged.local_error or 0.0)
        found = _in_proportion(error, place.change.start(call), needed)
        if self.steps is not None and found < math.inf:
            found = _stepwise(lambda share: error(share) > needed, found)
        return found if found <= MOST else math.inf


def _steps(call: Call, arithmetic: Arithmetic) -> Arithmetic | None:
    """The arithmetic that rounds numbers of a call before they are used; None for one that uses them as they are.

    ggml's angles are powers of a float32; where both operands of a product are rounded, so is each weight.
    """
    if arithmetic.ggml_products:
        return replace(F32, products=GGML) if call.op is rope else None
    kind = "f16" if arithmetic.products == "f16-sums" else arithmetic.products or arithmetic.weights_and_results
    return replace(F32, products=kind) if call.op is linear and kind is not None else None


def _in_proportion(error: Callable[[float], float], share: float, needed: float) -> float:
    """The share that makes an error, by one that makes an error large enough to be measured; `share` is tried first.

    Numbers of few bits stay what they are until a change is large enough: a share that changes them is given then.
    """
    aim = max(needed, AIM)
    near = 2.0 if aim > needed else NEAR
    while not (made := error(share)) and share < MOST:
        share *= COARSER
    for _ in range(ATTEMPTS):
        if not 0 < made < math.inf:
            return math.inf
        if aim / near <= made <= near * aim:
            return share * needed / made
        less = share * aim / made
        if not (made := error(less)):
            return share
        share = less
    return math.inf


def _stepwise(seen: Callable[[float], bool], near: float) -> float:
    """The smallest share that is seen, near to a first guess, where numbers act in steps."""
    above = near
    while not seen(above):
        above *= 2
        if above > MOST:
            return math.inf
    below = above / 2 if above > near else near / 16
    for _ in range(BISECTIONS if above == near else 2):
        middle = math.sqrt(below * above)
        below, above = (below, middle) if seen(middle) else (middle, above)
    return above


def site_of(call: Call) -> Site:
    """The site of a call."""
    return Site(call.step, call.layer, call.point)
