"""Explaining one case: which hypothesis, or pair of them, gives the candidate's numbers on the candidate's inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import inf

from firstdiff.explaining.attempt import ALIKE, Attempt, Fault, Means, attempt, explaining
from firstdiff.explaining.budget import OutOfTime
from firstdiff.explaining.looking_over import looked_over
from firstdiff.explaining.measured.measuring import is_wide, measured, nothing_but_bias
from firstdiff.explaining.measured.other_way import turned_over
from firstdiff.explaining.pairs import pairs_of
from firstdiff.explaining.residual import Part, part_of, rerun
from firstdiff.explaining.side_by_side import side_by_side
from firstdiff.hypotheses.fitting import Numbers
from firstdiff.hypotheses.hypothesis import Hypothesis, Later, Scene
from firstdiff.judging.case import Case
from firstdiff.model.arithmetic import Array
from firstdiff.model.moves import MOVES
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call

FIRST_LOOK = 128, 16
"""Outputs and tokens of a product that singles are tried at first."""

LONG = 24
"""Calls of its step that compute beyond which a segment is long: it spans more than a layer. A fault is then tried at
all of its layers at once, and not at each: on SmolLM2 a segment of ten layers takes 0.2 s to run, and has 14,000 ways
and places for a fault to be in."""

EACH = 12
"""Ways of one hypothesis that are tried in a long segment."""


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What was tried at a case, the best attempt of each hypothesis first; and whether the time was enough for all."""

    tried: list[Attempt]
    complete: bool


def search(case: Case, means: Means, *, pairs: bool = True) -> Search:
    """Try each hypothesis that applies, in the order of the table; where none explains, what is measured, and pairs.

    A pair of hypotheses stands for what is measured with many unknowns, such as the speed of each pair of dimensions.

    Parameters
    ----------
    case, means
        What to explain, and what to go by.
    pairs
        Whether to try pairs.
    """
    tried: list[Attempt] = []
    nothing: list[Attempt] = []
    told: list[Attempt] = []
    try:
        for attempted in _singles(case, means):
            tried.append(attempted)  # noqa: PERF402 - what was tried until the time is over stands
        tried = turned_over(case, means, looked_over(case, means, tried))
        nothing = nothing_but_bias(case, means)
        if not explaining(case, [*nothing, *tried]):
            told = measured(case, means)
            if pairs and not explaining(case, [a for a in told if not is_wide(a)]):
                # A pair says more than its better half, or nothing.
                best = min((a.residual for a in tried), default=inf)
                found = [a for a in pairs_of(case, means, tried) if a.residual <= best / ALIKE]
                found = looked_over(case, means, found)
                told = found if explaining(case, found) else told
    except OutOfTime:
        return Search([*nothing, *tried, *told], complete=False)
    order = {id_: number for number, id_ in enumerate(means.table)}
    tried = sorted([*tried, *told], key=lambda a: order.get(a.fault.id, len(order)))
    return Search([*nothing, *tried], complete=True)


def is_long(case: Case) -> bool:
    """Whether so many calls may be wrong that a fault is not tried at each of them."""
    return sum(call.op not in MOVES and call.step == case.site.step for call in case.calls) > LONG


def _singles(case: Case, means: Means) -> Iterator[Attempt]:
    part = part_of(case, *FIRST_LOOK)
    table = list(means.table.values())
    if is_long(case):  # what most engines have wrong at every layer is no weight
        table.sort(key=lambda h: h.where.ops is None or linear in h.where.ops)

    def tried(hypothesis: Hypothesis, means: Means) -> list[Attempt]:
        found: list[Attempt] = []
        with means.failures.at(case.site, hypothesis):
            for attempted in _best(case, means, hypothesis, part):
                found.append(attempted)  # noqa: PERF402 - what was tried before one fails stands
        return found

    yield from side_by_side(tried, table, means)


def _best(case: Case, means: Means, hypothesis: Hypothesis, part: Part | None) -> Iterator[Attempt]:
    """The best attempt of a hypothesis, and what explains as well of its other ways, where they are no numbers."""
    best, tried = None, []
    for fault in _faults(case, means, hypothesis):
        one = attempt(case, means.scene, fault, part=part, budget=means.budget)
        if one is None:
            continue
        tried.append(one)
        if best is None or one.residual < best.residual / ALIKE:
            best = one
            if best.residual <= case.noise and case.direct:
                break
    if best is None:
        return
    yield best
    for other in tried:
        named = all(isinstance(value, str) for value in other.fault.values.values())
        if named and other.explains and other.fault.values != best.fault.values:
            yield other


def _faults(case: Case, means: Means, hypothesis: Hypothesis) -> Iterator[Fault]:
    """The ways of a hypothesis in a case: at every call of the segment that it applies to, then at each alone.

    Of a long segment only the calls outside the layers are tried alone.
    """
    scene = means.scene
    calls = case.calls
    numbers = [n for n, call in enumerate(calls) if hypothesis.where.matches(call)]
    long = is_long(case)
    if len(numbers) > 1:
        ways = hypothesis.ways(calls[numbers[0]], scene, None)
        yield from (Fault(((hypothesis, values),)) for values in islice(ways, EACH if long else None))
    if not long:
        yield from _of_layers(hypothesis, [calls[n] for n in numbers], scene)
    for number in numbers:
        if number == len(calls) - 1:
            tried = hypothesis.ways(calls[number], scene, case.recorded)
        elif long and calls[number].layer is not None:
            continue
        else:
            beside = replace(scene, later=_later(case, means, number))
            tried = hypothesis.ways(calls[number], beside, case.recorded if _fits(hypothesis) else None)
        for values in tried:
            yield Fault(((hypothesis, values),), on=number if len(calls) > 1 else None)


def _of_layers(hypothesis: Hypothesis, calls: list[Call], scene: Scene) -> Iterator[Fault]:
    """The ways of a hypothesis at all calls of one layer, where a segment goes beyond the layer."""
    layers = Counter(call.layer for call in calls)
    for layer, count in layers.items():
        if count > 1 and len(layers) > 1:
            first = next(call for call in calls if call.layer == layer)
            for values in hypothesis.ways(first, scene, None):
                yield Fault(((hypothesis, values),), layers=frozenset({layer}))


def _fits(hypothesis: Hypothesis) -> bool:
    """Whether its ways can be fitted to what is observed at a later point."""
    return isinstance(hypothesis.ways, Numbers)


def _later(case: Case, means: Means, number: int) -> Later:
    """What is judged at the end of a segment, given one of its calls as the candidate makes it."""

    def run(changed: Call) -> Array:
        done = rerun(case, means.scene.arithmetic, lambda n, _: changed if n == number else None, means.budget)
        assert done is not None
        return done.given

    return Later(case.site.point, run)
