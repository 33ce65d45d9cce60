"""``firstdiff diff``."""

from __future__ import annotations

import argparse

from firstdiff.commands.options import budget_of
from firstdiff.commands.printing import show_verdict
from firstdiff.commands.watching import watched
from firstdiff.runs import diff as differing


def diff(options: argparse.Namespace) -> int:
    """Judge one recorded trace beside another."""
    with watched() as progress:
        verdict = differing.diff(
            options.candidate, options.witness, options.model, progress=progress, budget=budget_of(options)
        )
    return show_verdict(verdict, options, None)
