"""Readings of a log: what its numbers may stand for, and whether they agree with the reference under each.

People print statistics of all tokens or of the last one, of one prompt or of several, of scores before or after
scaling. Which it is, is settled once for the whole log, never line by line.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from firstdiff.dumps.log_lines import Printed
from firstdiff.dumps.observation import Observation
from firstdiff.logs.record import AGREES, DISAGREES, NOT_COMPARED, Difference, Observed
from firstdiff.logs.statistics import SCORES, Number, Sample, Sampling, View

MULTIPLE = 6.0
"""Units of drift that a correct engine may be away. Seen on SmolLM2 Q4_1 between three correct engines, in 160,000
numbers: at most 3.5 in 999 of 1,000, 5.8 at worst."""

MOST_PASSES = 8  # passes of a log that are tried as the first; whoever logs more gives the log of one run
MOST_ROWS = 256  # tokens of a prompt that are looked at one by one

ROUNDINGS = {"f32": 1e-6, "f16": 2.0**-11, "bf16": 2.0**-8}
"""What activations are rounded to, and by how much of themselves; of f32 it is the floor of an operation."""

ALL, LAST, EACH = "all tokens", "the last token", "token by token"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a whole log is understood.

    Parameters
    ----------
    rows
        Of which tokens the statistics are.
    skipped
        Passes ahead of the one with the given tokens.
    hidden, scaled
        Whether scores that causality hides are counted, and whether raw scores are printed after scaling.
    rounding
        What the engine rounds its activations to.
    """

    rows: str = ALL
    skipped: int = 0
    hidden: bool = False
    scaled: bool = False
    rounding: str = "f32"


@dataclass(frozen=True, slots=True)
class Seen:
    """An observation, and how many of the same site and step stand above it in the log."""

    observation: Observation
    turn: int


def in_turn(observations: Sequence[Observation]) -> list[Seen]:
    """Count, for each observation, those of the same site above it."""
    turns: Counter[tuple[object, ...]] = Counter()
    seen = []
    for o in observations:
        seen.append(Seen(o, turns[o.site, o.stepped]))
        turns[o.site, o.stepped] += 1
    return seen


def understood(seen: Sequence[Seen], probe: Sampling, tokens: int, passes: int) -> Reading:
    """The reading under which the log agrees for longest, in execution order, and then most often."""
    rows = (ALL,) if tokens == 1 else (ALL, LAST, *((EACH,) if probe.every_row else ()))
    scores = [s for s in seen if s.observation.site.point in SCORES]
    others = [s for s in seen if s.observation.site.point not in SCORES] or list(seen)

    def best(readings: Sequence[Reading], among: Sequence[Seen]) -> Reading:
        return max(readings, key=lambda r: _agreement(among, r, probe, tokens))  # the first of equals

    def first_agrees(reading: Reading) -> bool:
        keys = {(s.observation.site, s.turn): order_key(s, reading, probe.order, tokens)[:3] for s in seen}
        begun = min((k for k in keys.values() if k[0] == 0), default=None)
        first = [s for s in seen if keys[s.observation.site, s.turn] == begun]
        return all(judged_as(s, reading, probe, tokens, roundings=1).status != DISAGREES for s in first)

    skips = range(min(passes, MOST_PASSES))
    reading = best([Reading(rows=r, skipped=n) for r in rows for n in skips], others)
    if scores:
        reading = best([replace(reading, hidden=h, scaled=s) for h in (False, True) for s in (False, True)], scores)
    rounded = (replace(reading, rounding=name) for name in ROUNDINGS)
    return next((r for r in rounded if first_agrees(r)), reading)


def _agreement(seen: Sequence[Seen], reading: Reading, probe: Sampling, tokens: int) -> tuple[int, int]:
    """How many observations agree before the first that does not, and how many do in all."""
    judged = sorted(
        ((order_key(s, reading, probe.order, tokens), judged_as(s, reading, probe, tokens).status) for s in seen),
        key=lambda pair: pair[0],
    )
    status = [s for _, s in judged if s != NOT_COMPARED]
    until = status.index(DISAGREES) if DISAGREES in status else len(status)
    return until, status.count(AGREES)


def place_of(seen: Seen, reading: Reading, tokens: int) -> tuple[int, int | None]:
    """Step and row (None for all) that an observation is of; the step is negative for a pass that is left out."""
    observation, turn = seen.observation, seen.turn - reading.skipped
    if observation.stepped:
        return (-1 if turn else observation.site.step), (None if reading.rows == ALL else -1)
    if reading.rows != EACH or turn < 0:
        return turn, (None if reading.rows == ALL else -1)
    return (0, turn) if turn < tokens else (turn - tokens + 1, -1)


def order_key(
    seen: Seen, reading: Reading, order: dict[tuple[int | None, str], int], tokens: int
) -> tuple[int, int, int, int]:
    """Where an observation comes in execution order."""
    step, row = place_of(seen, reading, tokens)
    site = seen.observation.site
    return step, row or 0, order.get((site.layer, site.point), len(order)), seen.observation.line


def _sample(seen: Seen, reading: Reading, probe: Sampling, tokens: int) -> Sample | str:
    """What an observation is held against, or why nothing is there."""
    site, size = seen.observation.site, seen.observation.size
    step, row = place_of(seen, reading, tokens)
    if (site.layer, site.point) not in probe.order:
        return "the model computes no such point"
    views = probe.samples.get((step, site.layer, site.point))
    if views is None:
        return "of another pass than those of the tokens given (see --decode)"
    last = max(view.row for view in views if view.row is not None)
    hidden = reading.hidden and site.point in SCORES and reading.rows != EACH
    if size is None:
        return views[View(last if row == -1 else row, hidden)]
    # The log says how many values there are, and so of how many tokens.
    for view in (View(None, hidden=False), View(last, hidden=False)):
        sample = views[view]
        if size == sample.size:
            return sample
    if site.point in SCORES:  # llama.cpp pads them: only the first values are what they are elsewhere
        return replace(views[View(None, hidden=False)], numbers={}, last=())
    return f"printed with {size:,} values, where {views[View(None, hidden=False)].size:,} are computed"


def judged_as(seen: Seen, reading: Reading, probe: Sampling, tokens: int, *, roundings: float = MULTIPLE) -> Observed:
    """What is said of an observation under a reading, for a prompt of so many tokens.

    `roundings` is how often activations may have been rounded on the way.
    """
    o = seen.observation
    step, _ = place_of(seen, reading, tokens)
    site = replace(o.site, step=max(step, 0))
    sample = _sample(seen, reading, probe, tokens)
    if isinstance(sample, str):
        return Observed(site, o.line, NOT_COMPARED, reason=sample)
    times = probe.scale if reading.scaled and o.site.point == "kq" else 1.0
    compared, differences = 0, []
    for what, printed, number in _pairs(o, sample):
        if number is None or not math.isfinite(number.value):
            continue
        if o.site.point == "kq" and not math.isfinite(printed.value):
            continue  # a mask of -inf, which is right
        compared += 1
        drift = MULTIPLE * number.drift + roundings * ROUNDINGS[reading.rounding] * number.scale
        reference, allowed = number.value * times, printed.resolution + drift * times
        if not abs(printed.value - reference) <= allowed:  # NaN is not within
            differences.append(Difference(what, printed.value, reference, allowed))
    if not compared:
        return Observed(site, o.line, NOT_COMPARED, reason="none of its numbers can be compared")
    status = DISAGREES if differences else AGREES
    return Observed(site, o.line, status, compared, tuple(differences))


def _pairs(o: Observation, sample: Sample) -> Iterator[tuple[str, Printed, Number | None]]:
    """Every printed number with the reference's."""
    for name, printed in o.numbers.items():
        yield name, printed, sample.numbers.get(name)
    for i, (printed, number) in enumerate(zip(o.first, sample.first, strict=False)):
        yield f"value {i}", printed, number
    for i, (printed, number) in enumerate(zip(o.last[::-1], sample.last[::-1], strict=False)):
        yield f"value -{i + 1}", printed, number
    for token, printed in o.top:
        yield f"token {token}", printed, sample.top.get(token)
