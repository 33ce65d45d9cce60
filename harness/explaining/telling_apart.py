"""What tells hypotheses apart that explain as well: another run, a dump, or nothing but the code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.explaining.attempt import Fault
from firstdiff.hypotheses.hypothesis import Apart, Scene
from firstdiff.hypotheses.table import EQUIVALENT
from firstdiff.judging.case import Case
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

TELLING = 32
"""Tokens from which angles, masks and scales are told apart (faults of rope at 16 positions overlap)."""

ALIKE = "give the same numbers here: look which of them your code does"


def separating(faults: Sequence[Fault], case: Case, scene: Scene, trace: Trace) -> str:
    """What to do to tell faults apart, in words.

    Parameters
    ----------
    faults
        At least two that explain as well.
    case, scene
        A site that all of them explain, and what surrounds it.
    trace
        The run in which they do.
    """
    same: list[list[tuple[Fault, tuple[Call | None, ...]]]] = []
    for fault in faults:
        made = tuple(fault.change(number, call, scene) for number, call in enumerate(case.calls))
        for known in same:
            if _same(known[0], (fault, made)):
                known.append((fault, made))
                break
        else:
            same.append([(fault, made)])
    if len(same) == 1:
        return f"they {ALIKE}"
    longest = max(len(step.tokens) for step in trace.steps)
    advice = [_between(case, a[0][1], b[0][1]) or _apart(a[0][0], b[0][0], longest) for a, b in combinations(same, 2)]
    alike = [f"{' and '.join(fault.id for fault, _ in known)} {ALIKE}" for known in same if len(known) > 1]
    return "; ".join(dict.fromkeys((*advice, *alike)))


def _between(case: Case, a: Sequence[Call | None], b: Sequence[Call | None]) -> str | None:
    """What to dump, where one fault changes a tensor that was not recorded and the other does not; None for nothing."""
    differing = (
        call for call, x, y in zip(case.calls[:-1], a, b, strict=False) if call.point and (x is None) != (y is None)
    )
    call = next(differing, None)
    if call is None:
        return None
    return f"dump {Site(call.step, call.layer, call.point)} too: only one of these faults changes it"


def _apart(a: Fault, b: Fault, longest: int) -> str:
    """What to run, for two faults that can be told apart, after a run of at most so many tokens in a step."""
    known = EQUIVALENT.get(_differing(a, b))
    if known is not None:
        return known
    if longest < TELLING:
        return (
            f"{longest} tokens are too few to tell them apart: run a prompt of {TELLING} or more "
            "(firstdiff run MODEL has one where none is given)"
        )
    ways = {h.apart for fault in (a, b) for h in fault.hypotheses}
    if ways == {Apart.WEIGHT}:
        return Apart.WEIGHT
    return Apart.LENGTH if Apart.LENGTH in ways else Apart.PROMPT


def _ids(fault: Fault) -> frozenset[str]:
    return frozenset(hypothesis.id for hypothesis in fault.hypotheses)


def _differing(a: Fault, b: Fault) -> frozenset[str]:
    """The hypotheses that are not in both."""
    return _ids(a) ^ _ids(b)


def _same(a: tuple[Fault, tuple[Call | None, ...]], b: tuple[Fault, tuple[Call | None, ...]]) -> bool:
    """Whether no recording tells two faults apart: a pair that is known for it, or the same calls."""
    pair = _differing(a[0], b[0])
    return EQUIVALENT[pair] is None if pair in EQUIVALENT else all(map(_same_call, a[1], b[1]))


def _same_call(a: Call | None, b: Call | None) -> bool:
    if a is None or b is None:
        return a is b
    if a.op != b.op:
        return False
    ours, theirs = a.arguments, b.arguments
    return ours.keys() == theirs.keys() and all(_same_value(ours[name], theirs[name]) for name in ours)


def _same_value(a: object, b: object) -> bool:
    """Whether two inputs or attributes of calls hold the same numbers, to the bit."""
    if a is b:
        return True
    if isinstance(a, Weight) and isinstance(b, Weight):
        return a.shape == b.shape and _same_weight(a, b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    return type(a) is type(b) and not isinstance(a, Weight | np.ndarray) and bool(a == b)


def _same_weight(a: Weight, b: Weight) -> bool:
    """Whether two weights of one shape hold the same values, compared some rows at a time."""
    if len(a.shape) == 1:
        return np.array_equal(a.values(), b.values(), equal_nan=True)
    return all(np.array_equal(a.rows(*part), b.rows(*part), equal_nan=True) for part in a.chunks())
