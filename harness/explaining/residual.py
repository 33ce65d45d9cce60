"""What a hypothesis leaves of a case's error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import axes_of
from firstdiff.explaining.budget import Budget
from firstdiff.hypotheses.products import cut, rowwise, spread
from firstdiff.judging.case import DOUBTFUL, Case
from firstdiff.judging.measure import measure, overflowing, within_f16
from firstdiff.judging.rows import shown
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.model.terms import terms
from firstdiff.model.value import Value

Alter = Callable[[int, Call], Call | None]
"""Gives a call gone wrong, by its number in the segment (the judged one last) and with the inputs that it then has."""

FINITE = 16
"""Numbers that must be finite in both, where a hypothesis gives NaN or infinity, for it to explain anything."""


@dataclass(frozen=True, slots=True, eq=False)
class Rerun:
    """What the judged call gives, the judged call itself, and the numbers of the calls that were altered."""

    given: Array
    call: Call
    changed: tuple[int, ...]


def rerun(case: Case, arithmetic: Arithmetic, alter: Alter, budget: Budget | None = None) -> Rerun | None:
    """Run the segment and the judged call again with altered calls; None where nothing was altered.

    Raises
    ------
    OutOfTime
        Where the time of a `budget` is over.
    """
    new: dict[Value, Array] = {}
    altered = []
    for number, done in enumerate(case.segment):
        call = done.call.with_inputs(new)
        changed = alter(number, call)
        if changed is not None:
            altered.append(number)
        if changed is not None or call is not done.call:
            if budget is not None:
                budget.check()
            new[done.value] = computed(changed or call, arithmetic)
    call = case.call.with_inputs(new)
    changed = alter(len(case.segment), call)
    if changed is not None:
        altered.append(len(case.segment))
    return Rerun(computed(changed or call, arithmetic), changed or call, tuple(altered)) if altered else None


def computed(call: Call, arithmetic: Arithmetic) -> Array:
    """What a call gives, overflow and NaN included."""
    with np.errstate(all="ignore"):
        return call.compute(arithmetic)


def left(case: Case, arithmetic: Arithmetic, call: Call, given: Array | None = None, *, known: bool = False) -> float:
    """What is left of the error if the candidate did `call`, which gives `given`; as a local error.

    What is little over the bar may be the rounding of our own sums. `known` is as in :func:`residual`.
    """
    found = residual(case, computed(call, arithmetic) if given is None else given, call, known=known)
    bar = case.bar(arithmetic, call)
    if case.direct and bar < found <= DOUBTFUL * bar:
        found = min(found, residual(case, computed(call, arithmetic.exact), call, known=known))
    return found


def residual(case: Case, given: Array, call: Call, *, known: bool = False) -> float:
    """The candidate's output against `given`, what `call` gives, as a local error.

    A number where the hypothesis gives none is no agreement, and that neither has a number none either, except where
    the fault is `known` from another site. Zeros agree with zeros only, however small the numbers are.
    """
    if given.shape != case.recorded.shape:
        return float("inf")
    stored = None if case.arithmetic is None else case.arithmetic.weights_and_results
    recorded = overflowing(case.recorded, given, ("bf16", stored, *(("f16",) if case.half else ())), case.floor)
    recorded = within_f16(recorded, given, case.floor) if case.half else recorded
    odd = ~np.isfinite(given)
    if odd.any():
        if case.seen is not None:
            odd = odd & case.seen
        finite = np.isfinite(given) if case.seen is None else np.isfinite(given) & case.seen
        few = np.count_nonzero(finite & np.isfinite(recorded)) < min(FINITE, given.size)
        if np.isfinite(recorded[odd]).any() or (few and not known):
            return float("inf")
    if not given.any() and (recorded != 0 if case.seen is None else (recorded != 0) & case.seen).any():
        return float("inf")
    axes = axes_of(case.site.point, given.ndim)
    difference = measure(recorded, given, axes=axes, floor=case.floor, seen=case.seen, terms=lambda: terms(call))
    return difference.error


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some outputs and some tokens of a product, to try a hypothesis at in a hundredth of the time."""

    rows: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    recorded: Array  # [token, row]

    def residual(self, case: Case, arithmetic: Arithmetic, call: Call) -> float:
        """As :func:`residual`, of this part alone; of what is no product any more, of all."""
        whole = case.call.argument("weight").shape
        if not (rowwise(call.op) and call.argument("weight").shape == whole):
            return residual(case, computed(call, arithmetic), call)
        part = cut(call, self.rows, self.tokens)
        return residual(replace(case, recorded=self.recorded, seen=None), computed(part, arithmetic), part)


def part_of(case: Case, rows: int, tokens: int) -> Part | None:
    """Evenly spread outputs and recorded tokens; None where the case is no lone product, or is that small already."""
    if case.segment or case.call.op is not linear:
        return None
    flat = case.recorded.reshape(len(case.recorded), -1)
    if flat.shape[1] <= rows and len(flat) <= tokens:
        return None
    known = shown(case.seen)
    held = np.arange(len(flat)) if known is None else known
    kept, chosen = held[spread(len(held), tokens)], spread(flat.shape[1], rows)
    return Part(chosen, kept, np.ascontiguousarray(flat[kept][:, chosen]))
