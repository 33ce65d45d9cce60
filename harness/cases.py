"""A diverging site with all that is needed to run it again: the case that an explanation is sought for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site
from firstdiff.dumps.points import axes_of
from firstdiff.floors import passed_on
from firstdiff.measure import measure, shown, within_f16
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import MOVES, linear
from firstdiff.model.probe import Call
from firstdiff.model.terms import terms
from firstdiff.model.value import Value

Alter = Callable[[int, Call], Call | None]
"""Gives a call gone wrong, by its number in the segment (the judged one last) and with the inputs that it then has."""


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
        a softmax of scores without their factor.
        """
        noise = NOISE * self.noise
        if self.inputs:
            more, right = (passed_on(arithmetic, of, self.inputs) for of in (call, self.call))
            noise *= max(1.0, more / right)
        return min(self.floor, self.error / CLEARLY, max(PLAIN, noise, self.stored / 2))


PLAIN = 1e-5
"""Floors of float64, float32 and ggml-cpu at one operation lie below it, and are taken as they are."""

CLEARLY = 4.0
"""What explains leaves less of the error than this part, however wide the floor is."""

DOUBTFUL = 10.0
"""Floors up to which an error may be the rounding of our own sums: they are then summed in float64 before anything is
said. On SmolLM2's ffn_out-1 at 2,048 tokens ours were 1.4e-6 off, where llama.cpp's were right."""

FINITE = 16
"""Numbers that must be finite in both, where a hypothesis gives NaN or infinity, for it to explain anything."""

NOISE = 4.0
"""A residual may be so many times the median of the same point's other sites: below it a hypothesis is as right as they
are. The floor of a dump stored in bf16 lies far above that, where wrong hypotheses fit too."""


def rerun(case: Case, arithmetic: Arithmetic, alter: Alter) -> tuple[Array, Call] | None:
    """Run the segment and the judged call again with altered calls; None where nothing was altered.

    Returns
    -------
    What the judged call then gives, and the judged call itself.
    """
    new: dict[Value, Array] = {}
    altered = False
    for number, done in enumerate(case.segment):
        call = done.call.with_inputs(new)
        changed = alter(number, call)
        altered |= changed is not None
        if changed is not None or call is not done.call:
            new[done.value] = computed(changed or call, arithmetic)
    call = case.call.with_inputs(new)
    changed = alter(len(case.segment), call)
    if not altered and changed is None:
        return None
    return computed(changed or call, arithmetic), changed or call


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
    the fault is `known` from another site.
    """
    if given.shape != case.recorded.shape:
        return float("inf")
    recorded = within_f16(case.recorded, given, case.floor) if case.half else case.recorded
    odd = ~np.isfinite(given)
    if odd.any():
        if case.seen is not None:
            odd = odd & case.seen
        finite = np.isfinite(given) if case.seen is None else np.isfinite(given) & case.seen
        few = np.count_nonzero(finite & np.isfinite(recorded)) < min(FINITE, given.size)
        if np.isfinite(recorded[odd]).any() or (few and not known):
            return float("inf")
    axes = axes_of(case.site.point, given.ndim)
    difference = measure(recorded, given, axes=axes, floor=case.floor, seen=case.seen, terms=lambda: terms(call))
    return difference.error


def cut(call: Call, rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64] | slice = slice(None)) -> Call:
    """A product of these rows of its weight alone, and of these tokens."""
    x, weight, *bias = call.inputs
    inputs = np.ascontiguousarray(x[tokens]), weight.pick(rows), *(b and b.pick(rows) for b in bias)
    attributes = {name: value for name, value in call.attributes.items() if name != "heads"}
    return replace(call, inputs=inputs, attributes=attributes)


def spread(n: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many indices of `n`, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some outputs and some tokens of a product, to try a hypothesis at in a hundredth of the time."""

    rows: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    recorded: Array  # [token, row]

    def residual(self, case: Case, arithmetic: Arithmetic, call: Call) -> float:
        """As :func:`residual`, of this part alone; of what is no product any more, of all."""
        if not (getattr(call.op, "rowwise", call.op is linear) and call.inputs[1].shape == case.call.inputs[1].shape):
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
