"""An arithmetic that differs by the number of tokens of a step: one kernel for a prompt, another for decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from firstdiff.dumps import Step
from firstdiff.judging.arithmetic import Fingerprint
from firstdiff.model.arithmetic import HELD, arithmetic_named

MOST = 6
"""Numbers of tokens that are looked at: engines have two kernels as a rule, three at most."""


def stand_ins(steps: Sequence[Step]) -> dict[int, int]:
    """The steps that stand for all of their number of tokens: the first of each number, the first step before all.

    Of many numbers some are taken, evenly spread.
    """
    first: dict[int, int] = {}
    for index, step in enumerate(steps):
        first.setdefault(len(step.tokens), index)
    numbers = sorted(first)
    if len(numbers) > MOST:
        spread = {numbers[i * (len(numbers) - 1) // (MOST - 1)] for i in range(MOST)}
        numbers = sorted(spread | {len(steps[0].tokens)})
    return {number: first[number] for number in sorted(numbers, key=lambda n: first[n])}


def by_phase(first: Fingerprint, phases: Mapping[int, Fingerprint]) -> Fingerprint:
    """The fingerprint of a run of several phases, given those of steps by their number of tokens.

    Weights are converted once: what they are held in does not differ. Products whose operands are rounded to the same
    type do not show it.
    """
    if all(phase is first for phase in phases.values()):
        return first
    held: dict[str, str] = {}
    for part in HELD:
        kinds = {kind for phase in phases.values() if (kind := getattr(phase.arithmetic, part)) is not None}
        held |= {part: kinds.pop()} if len(kinds) == 1 else {}
    alike = {tokens: _holding(phase, held) for tokens, phase in phases.items()}
    return replace(_holding(first, held), phases=tuple(alike.items()))


def _holding(found: Fingerprint, held: Mapping[str, str]) -> Fingerprint:
    """A fingerprint with what other phases show of the weights, where its own numbers cannot."""
    arithmetic = found.arithmetic
    rounds = {arithmetic.products, arithmetic.weights_and_results}
    parts = [f"{part}={kind}" for part, kind in held.items() if getattr(arithmetic, part) is None and kind in rounds]
    return replace(found, arithmetic=arithmetic_named("+".join([arithmetic.name, *parts])))
