"""Floors: the local error that a correct engine shows, by arithmetic and by what a judged segment spans.

Measured against llama.cpp's CPU backend on SmolLM2 and on synthetic models of every quantisation type, with
``make bench-floors``: see the test of floors for what holds them in place.
"""

from __future__ import annotations

from collections.abc import Sequence

from firstdiff.model.arithmetic import Arithmetic
from firstdiff.model.probe import Call

OPERATION = 1e-6
"""One operation on recorded inputs. Largest seen: 8e-7."""


def floor(arithmetic: Arithmetic, calls: Sequence[Call]) -> float:
    """The floor of a segment: the calls since the last recorded values, and the judged one."""
    return OPERATION if len(calls) == 1 else 1.0
