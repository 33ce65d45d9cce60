"""What was told of one fault in an engine that only gives logits."""

from __future__ import annotations

from dataclasses import dataclass

from firstdiff.hypotheses.table import EQUIVALENT
from firstdiff.verdict import Verdict


@dataclass(frozen=True)
class Outcome:
    """What was told of one fault."""

    model: str
    id: str
    layer: int | None
    seen: bool
    right_layer: bool
    right_op: bool
    right_cause: bool
    told: str
    runs: int
    most: int
    seconds: float


def is_told(verdict: Verdict, id_: str) -> bool:
    """Whether a hypothesis, or one that gives the same numbers, is among what is told."""
    same = {other for pair in EQUIVALENT if id_ in pair for other in pair} | {id_}
    told = {e.hypothesis for e in verdict.explanations} | {t.hypothesis for e in verdict.explanations for t in e.equals}
    return bool(told & same)
