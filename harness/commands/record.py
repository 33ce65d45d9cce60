"""``firstdiff record``."""

from __future__ import annotations

import argparse

from firstdiff.commands.options import DECODE, attention_of, source_of
from firstdiff.commands.watching import watched
from firstdiff.errors import UsageError
from firstdiff.hypotheses.planting import planted
from firstdiff.runs import recording

LONGEST_LAYER = 10  # digits


def record(options: argparse.Namespace) -> int:
    """Record one engine's run."""
    plants = []
    for text in options.bug:
        bug, at, layer = text.partition("@")
        plants.append(planted(bug, _layer(layer) if at else None))
    decode = DECODE if options.decode is None else options.decode
    with watched(options.out) as progress:
        trace = recording.record(
            options.model,
            source_of(options),
            options.out,
            engine=options.engine,
            decode=decode,
            threads=options.threads,
            attention=attention_of(options),
            planted=plants,
            progress=progress,
        )
    print(f"{options.out}: {len(trace.sites()):,} sites in {len(trace.steps)} steps")
    return 0


def _layer(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < LONGEST_LAYER):
        raise UsageError(f"--bug: {text!r:.40} is no layer: give a whole number from 0 on")
    return int(text)
