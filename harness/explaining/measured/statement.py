"""A statement: what was measured of an operation, in words, and a call that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from firstdiff.hypotheses.hypothesis import Change, Hypothesis, Values
from firstdiff.hypotheses.where import ANY, Where
from firstdiff.model.operations import Operation

PLACES = "find the code that handles these indices differently: check the ends of loops, tails, offsets and branches"
"""What to do about a fault that is at some places only."""

ORDER = ("head", "feature", "input", "dimension", "key", "query", "token")
"""Axes in the order in which sentences name them."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured: the id of a statement, its parameters, and what they leave of the squared error."""

    id: str
    values: dict[str, Any]
    left: float


def statement(
    id_: str,
    says: str,
    change: Change,
    found: str | Callable[[Values], str],
    fix: str = PLACES,
    *,
    ops: tuple[Operation, ...] | None = None,
) -> Hypothesis:
    """A statement that is tried only with parameters that were measured.

    Parameters
    ----------
    id_
        Its name.
    says
        What it says, without parameters.
    change
        Makes the call that does it.
    found
        What it says with its parameters.
    fix
        What to do about it.
    ops
        The operations that it speaks of; None for any.
    """
    return Hypothesis(id_, ANY if ops is None else Where(ops), says, fix, change, found=found)


def these(axis: str, written: str) -> str:
    """Places of an axis in words: ``feature 3``, ``inputs 512-575``, ``the inputs i with i % 4 in 1-2``."""
    many = "queries" if axis == "query" else f"{axis}s"
    runs, _, period = written.partition(" of each ")
    if period:
        return f"the {many} i with i % {period} {'==' if runs.isdigit() else 'in'} {runs}"
    return f"{axis if written.isdigit() else many} {written}"


def where(values: Values) -> str:
    """The places in words: ``heads 0-3 of tokens 4-7``; empty for all."""
    return " of ".join(these(axis, values[axis]) for axis in ORDER if axis in values)


def is_one(values: Values) -> bool:
    """Whether the places that come first in words are a single one."""
    first = next((values[axis] for axis in ORDER if axis in values), "")
    return first.isdigit()
