"""The layout of every point of a trace, found from its numbers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, carrying, of_kind
from firstdiff.judging.layouts import (
    QUERIES,
    SCORES,
    Alignment,
    Layout,
    candidates,
    is_reordered,
    is_scaled,
    scaled_layout,
    stated,
)
from firstdiff.judging.measure import relative
from firstdiff.judging.needed import Judging, Wanted, run
from firstdiff.model.arithmetic import F32, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import visible
from firstdiff.model.probe import Call
from firstdiff.model.shapes import shape_of
from firstdiff.model.value import Value

PLAUSIBLE = 0.1
"""Median error up to which a layout can be the right one: quantised activations alone make up to 0.04."""

BETTER = 0.2
"""A layout other than the plain one is taken where it leaves less than this share of the plain one's median error."""

BEFORE = tuple(
    (before, rotation)
    for operand in "QK"
    for rotation in carrying(operand)
    for before in carrying(operand)
    if rotation in of_kind(Kind.ROTATION) and before in of_kind(Kind.PRODUCT, Kind.NORM)
)
"""What stands before a rotation, and the rotation."""

KEYS = tuple(point for point in carrying("K") if point in of_kind(Kind.NORM, Kind.ROTATION, Kind.CACHE))
"""What scores have for keys, and its norm: a factor on Q and K alike is not a scale that was folded into Q."""


@dataclass
class _Trial(Judging):
    """Measures every layout of every point, at every layer, on the candidate's own inputs."""

    trace: Trace
    model: Model
    given: Alignment
    scaled: tuple[str, ...]  # points that may be
    errors: dict[str, dict[int, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    _known: dict[str, tuple[Layout, ...]] = field(default_factory=dict)

    def layouts(self, point: str) -> tuple[Layout, ...]:
        """The layouts that are tried for a point: of a given one that is scaled, the unscaled one too."""
        if point not in self._known:
            given = self.given.layouts.get(point)
            layouts = tuple(candidates(point, self.model)) if given is None else (given,)
            if point in self.scaled:
                layouts += tuple(scaled_layout(layout, self.model.hp.head_dim) for layout in layouts)
            elif given is not None and given.unscaled is not None:
                layouts += (given.unscaled,)
            self._known[point] = layouts
        return self._known[point]

    def chosen(self) -> dict[str, Layout]:
        """The layout of each point that is not laid out plainly."""
        chosen = {}
        for point, errors in self.errors.items():
            layouts = self.layouts(point)
            best = _choice({index: median(values) for index, values in errors.items()})
            if best:
                chosen[point] = layouts[best]
        for before, after in BEFORE:
            # An order of dimensions holds on both sides of the rotation: on one alone, the weight's rows are permuted.
            if is_reordered(chosen.get(before)) and after in self.errors and not is_reordered(chosen.get(after)):
                del chosen[before]
        return chosen

    def agree(self, chosen: dict[str, Layout]) -> bool:
        """Whether what follows a scaled Q is scaled as well, and K is right: a factor on both is no scale."""
        points = [p for p in (*QUERIES, *SCORES) if p in self.errors]
        scaled = [is_scaled(chosen.get(p)) for p in points]
        if not any(s for p, s in zip(points, scaled, strict=True) if p in QUERIES):
            return True
        keys = [self.errors[p] for p in KEYS if p in self.errors]
        right = all(min(median(e) for e in errors.values()) <= PLAUSIBLE for errors in keys)
        return right and scaled == sorted(scaled)

    def value(self, call: Call) -> Value:
        """Measure each layout that fits, and go on with the one that fits best here."""
        with np.errstate(all="ignore"):
            computed = call.compute(self.arithmetic)
        layouts = self.layouts(call.point)
        seen = visible(*computed.shape[-2:]) if call.point in SCORES else None
        site = Site(call.step, call.layer, call.point)
        best: tuple[float, Array] | None = None
        for index, layout in enumerate(layouts):
            read, rows, _ = Alignment({call.point: layout}).read_rows(self.trace, site, computed)
            if read is None:
                continue
            error = relative(read, computed, seen if rows is None else rows)
            self.errors[call.point][index].append(error)
            if best is None or error < BETTER * best[0]:
                best = error, read
        return Value(computed if best is None else best[1])

    def known(self, call: Call) -> Value | None:
        """Return the recorded value where only one layout fits its shape: any other choice needs the numbers."""
        shape = shape_of(call)
        if shape is None:
            return None
        site = Site(call.step, call.layer, call.point)
        like = np.broadcast_to(np.float32(np.nan), shape)
        read = [
            Alignment({call.point: layout}).read_rows(self.trace, site, like) for layout in self.layouts(call.point)
        ]
        fitting = [(x, rows) for x, rows, _ in read if x is not None]
        return Value(fitting[0][0]) if len(fitting) == 1 and fitting[0][1] is None else None


@np.errstate(all="ignore")  # a candidate's NaN and infinities are compared, not warned of
def aligned(model: Model, trace: Trace) -> Alignment:
    """Give the layouts that a trace's manifest states, and find those of its other points."""
    return align(model, trace, stated(trace))


def align(model: Model, trace: Trace, given: Alignment, wanted: Wanted | None = None) -> Alignment:
    """Find the layout of every point of a trace, from the prompt's step over all layers; a `given` one stays.

    With `wanted` it is found from these sites only.

    A point that is recorded under no layout that fits stays with the plain one, and is then not comparable. Values are
    taken for scaled where they are so at every step.
    """
    for scaled in ((*QUERIES, *SCORES), SCORES, ()):
        chosen = _tried(model, trace, given, scaled, wanted)
        if chosen is not None:
            return Alignment(given.layouts | chosen)
    raise AssertionError("nothing speaks against layouts of which none is scaled")


def _tried(
    model: Model, trace: Trace, given: Alignment, scaled: tuple[str, ...], wanted: Wanted | None
) -> dict[str, Layout] | None:
    """Layouts of which those of some points may be `scaled`; None where one then is that cannot be."""
    trial = _Trial(F32, trace, model, given, scaled)
    run(model, trace.steps[:1], trial, wanted)
    chosen = trial.chosen()
    found = [point for point, layout in chosen.items() if is_scaled(layout)]
    if not found:
        return chosen
    if not trial.agree(chosen):
        return None
    whole = _Trial(F32, trace, model, Alignment(given.layouts | chosen), ())
    run(model, trace.steps, whole, wanted)
    unscaled = [error for point in found for error in whole.errors[point][1]]
    return None if min(unscaled) <= PLAUSIBLE else chosen


def _choice(middle: dict[int, float]) -> int:
    """Index of the layout to take: plain (0) unless its shape does not fit, or another one's numbers fit far better."""
    first = min(middle)
    best = min(middle, key=lambda index: middle[index])
    if best != first and middle[best] <= PLAUSIBLE and middle[best] < BETTER * middle[first]:
        return best
    return first
