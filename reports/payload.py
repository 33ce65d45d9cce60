"""What the page's script draws from: every site and every closer look, in few characters.

SmolLM2's 1,719 sites have to fit a page of less than 1 MB, closer looks and all. So names stand once, in tables, and
what is only drawn (errors along an axis, bars, pairs) is written as one character a value: finer than a pixel or two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, log1p, log10
from typing import Any

from firstdiff.dumps.site import Site
from firstdiff.reports.words import along
from firstdiff.verdict import Detail, Explanation, Profile, SiteVerdict, Statistics, Status, Verdict

ALPHABET = "".join(c for c in map(chr, range(0x23, 0x7F)) if c not in "&'<>\\")
"""Characters that stand for levels, from 0 up: those that JSON inside HTML writes as themselves."""

TOP = len(ALPHABET) - 1
SMALLEST, PER_DECADE = -9, 8
"""Errors are levels of an eighth of a decade from 1e-9 on, up to 3e1; level 0 is no error, the last one infinity."""

Text = Callable[[str], str]


def payload(verdict: Verdict, text: Text) -> dict[str, Any]:
    """Everything that the script needs.

    Parameters
    ----------
    verdict
        What to draw.
    text
        Makes a text fit for a page: every name passes through it.
    """
    points = list(dict.fromkeys(s.point for s in verdict.sites))
    number = {s.site: i for i, s in enumerate(verdict.sites)}
    return {
        "alphabet": ALPHABET,
        "points": [text(p) for p in points],
        "ops": [text(next(s.op for s in verdict.sites if s.point == p)) for p in points],
        "statuses": [s.value for s in Status],
        "sites": [_site(s, points.index(s.point)) for s in verdict.sites],
        "more": {i: more for i, s in enumerate(verdict.sites) if (more := _more(s, text))},
        "details": {number[site]: _detail(d, text) for site, d in verdict.details.items()},
        "first": None if verdict.first is None else number[verdict.first.site],
        "explanations": [_explanation(e, number, text) for e in verdict.explanations],
        "tokens": verdict.tokens,
        "pieces": [text(p) for p in verdict.pieces],
    }


def _site(s: SiteVerdict, point: int) -> list[Any]:
    status = list(Status).index(s.status)
    return [point, s.layer, s.step, status, *(_number(x) for x in (s.local_error, s.floor, s.drift))]


def _more(s: SiteVerdict, text: Text) -> dict[str, Any]:
    """What few sites have."""
    told = {
        "inputs": None if s.inputs_right else "wrong",
        "segment": [text(str(of)) for of in s.segment],
        "where": [text(along(axis, span)) for axis, span in (s.where or {}).items()],
        "broken": s.not_finite,
        "reason": None if s.reason is None else text(s.reason),
    }
    return {name: value for name, value in told.items() if value}


def _detail(d: Detail, text: Text) -> list[Any]:
    return [
        d.shape,
        _statistics(d.candidate),
        _statistics(d.reference),
        [[list(e.index), _number(e.candidate, 8), _number(e.reference, 8)] for e in d.worst],
        [[text(p.axis), p.size, p.step, _errors(p)] for p in d.profiles],
        None
        if d.histogram is None
        else _bars(d.histogram.low, d.histogram.high, d.histogram.candidate, d.histogram.reference),
        _pairs(d.scatter),
    ]


def _statistics(s: Statistics) -> list[Any]:
    return [*(_number(x, 4) for x in (s.mean, s.rms, s.low, s.high)), s.not_finite]


def _errors(profile: Profile) -> str:
    return "".join(ALPHABET[_level(e)] for e in profile.errors)


def _level(error: float) -> int:
    if error <= 0:
        return 0
    if not isfinite(error):
        return TOP
    return min(max(1 + round((log10(error) - SMALLEST) * PER_DECADE), 1), TOP - 1)


def _bars(low: float, high: float, *counts: Sequence[int]) -> list[Any]:
    """Both histograms as logarithms of their counts, the largest of which is given."""
    most = max(max(c) for c in counts)
    height = TOP / log1p(max(most, 1))
    return [
        _number(low, 3),
        _number(high, 3),
        most,
        *("".join(ALPHABET[round(height * log1p(n))] for n in c) for c in counts),
    ]


def _pairs(scatter: Sequence[tuple[float, float]]) -> list[Any] | None:
    """Pairs on one scale: from the lowest to the highest value of both."""
    finite = [pair for pair in scatter if isfinite(pair[0]) and isfinite(pair[1])]
    if not finite:
        return None
    values = [x for pair in finite for x in pair]
    low, high = min(values), max(values)
    scale = TOP / (high - low) if low < high < low + 1e300 else 0.0
    return [_number(low), _number(high), "".join(ALPHABET[round((x - low) * scale)] for x in values)]


def _explanation(e: Explanation, number: dict[Site, int], text: Text) -> dict[str, Any]:
    accepted = {e.hypothesis, *(t.hypothesis for t in e.equals)}
    return {
        "sites": [number[s] for s in e.sites if s in number],
        "site": text(str(e.searched or e.site)),
        "says": text(e.says),
        "explains": e.hypothesis is not None,
        "tried": [[text(t.hypothesis), text(t.says), _number(t.residual), t.hypothesis in accepted] for t in e.tried],
    }


def _number(x: float | None, digits: int = 3) -> float | str | None:
    """A number in few digits, as JSON has it; those that it does not have as texts."""
    if x is None:
        return None
    return float(f"{x:.{digits}g}") if isfinite(x) else str(x)
