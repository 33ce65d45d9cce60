"""Limits: what a verdict fails by, and what is said beside it."""

from __future__ import annotations

from builders.verdicts import wrong_dump
from firstdiff.gate.config import Limits
from firstdiff.gate.limits import held

FINDING = "Before any tensor, the dump: l_out at every layer: your dump holds the branch. To do: dump the sum"


def test_what_is_wrong_with_a_dump_is_a_note_where_nothing_fails() -> None:
    failures, notes = held(wrong_dump(), Limits(coverage=0.5))
    assert failures == ()
    assert notes == (FINDING,)


def test_it_comes_before_what_fails() -> None:
    (first, second, *_), notes = held(wrong_dump(bug=1), Limits())
    assert first == f"{FINDING}."
    assert second.startswith("Qcur_rope-1 is the first to go wrong")
    assert notes == ()
