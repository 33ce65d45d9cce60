"""Measured numbers as people would write them: as few digits as what was measured allows."""

from __future__ import annotations

from math import isfinite

DIGITS = range(1, 8)

ERRORS = 4.0
"""Standard errors within which a rounder number is as good as the measured one."""

FINEST = 2e-7
"""What float32 leaves unknown of any factor."""


def stated(value: float, error: float) -> float:
    """The number of fewest digits that lies within some standard errors of a measured one."""
    if not isfinite(value):
        return value
    allowed = max(ERRORS * error, FINEST * max(abs(value), 1.0))
    if abs(value) <= allowed:
        return 0.0
    near = (float(f"{value:.{digits}g}") for digits in DIGITS)
    return next((number for number in near if abs(number - value) <= allowed), value)


def times(factor: float) -> str:
    """How often something counts, in words."""
    known = {0.0: "not at all", 2.0: "twice", -1.0: "with the opposite sign"}
    return known.get(factor, f"{factor:g} times")
