"""How small a fault would have shown, where nothing diverges: the sentences behind an agreement."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isfinite, log10

from firstdiff.verdict import Fault, Sensitivity, Smallest, Verdict

NAMES = {
    Fault.NORM_EPSILON: "a norm's epsilon",
    Fault.ROPE_BASE: "the rope base",
    Fault.SOFTMAX_SCALE: "the softmax scale",
    Fault.MATRIX: "all weights of one matrix",
    Fault.WEIGHT: "one weight of a matrix",
    Fault.EMBEDDING: "all rows of the embedding",
}

ALIKE = 3.0
"""Places whose smallest changes differ by less than this factor need not both be told."""

TIMES = 10.0
"""Shares from which a number is said to be so many times as large."""


def sensitivity(verdict: Verdict) -> list[str]:
    """Say how small a fault this dump would have shown, and of which kinds it says nothing; nothing where unknown."""
    of = verdict.sensitivity
    shown = [(s, s.least) for s in of if s.least is not None and isfinite(s.least.share)]
    hidden = [NAMES[s.fault] for s in of if s.least is not None and not isfinite(s.least.share)]
    unknown = [NAMES[s.fault] for s in of if s.least is None]
    told = []
    if shown:
        faults = "; ".join(f"{_amount(s.fault, least.share)} ({_where(s, least)})" for s, least in shown)
        told.append(f"A fault at a single place would have shown from this size on: {faults}.")
    if hidden:
        told.append(f"However wrong {_any_of(hidden)} were, it would not have shown in this dump.")
    if unknown:
        why = "no such operation was recorded near enough to what it is computed from"
        told.append(f"Nothing can be said of {_any_of(unknown)}: {why}.")
    return told


def _amount(fault: Fault, share: float) -> str:
    if fault is Fault.WEIGHT:
        return f"{NAMES[fault]} off by {_share(share)} its row's root mean square"
    return f"{NAMES[fault]} {_larger(share)}"


def _larger(share: float) -> str:
    return f"{_number(share + 1)} times as large" if share >= TIMES else f"{_number(100 * share)} % too large"


def _share(share: float) -> str:
    return f"{_number(share)} times" if share >= TIMES else f"{_number(100 * share)} % of"


def _where(s: Sensitivity, least: Smallest) -> str:
    """Where the change is, where it is seen, and where it takes more."""
    told = f"at {least.site}" if least.seen == least.site else f"at {least.site}, seen at {least.seen}"
    if s.most is None or s.most.share < ALIKE * least.share:
        return told
    if not isfinite(s.most.share):
        return f"{told}; at {s.most.site} not at any size"
    more = f"off by {_share(s.most.share)} that" if s.fault is Fault.WEIGHT else _larger(s.most.share)
    return f"{told}; at {s.most.site} only if {more}"


def _number(x: float) -> str:
    """A number in two digits, rounded up, without an exponent."""
    digits = 1 - floor(log10(x))
    up = ceil(x * 10.0**digits * (1 - 1e-9)) / 10.0**digits
    told = f"{up:,.{max(0, digits)}f}"
    return told.rstrip("0").rstrip(".") if "." in told else told


def _any_of(names: Sequence[str]) -> str:
    (*first, last) = names
    return f"{', '.join(first)} or {last}" if first else last
