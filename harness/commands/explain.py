"""``firstdiff explain``."""

from __future__ import annotations

import argparse
import json

from firstdiff.commands.watching import watched
from firstdiff.runs import explained
from firstdiff.verdict.writing import strict


def explain(options: argparse.Namespace) -> int:
    """Say why sites diverge."""
    with watched() as progress:
        verdict = explained.verdict_of(
            options.path, options.model, options.names, site=options.site, budget=options.budget, progress=progress
        )
    chosen = explained.chosen(verdict, options.site)
    if options.json:
        print(json.dumps(strict(chosen), indent=1, allow_nan=False))
        return verdict.exit_code
    from rich.console import Console

    from firstdiff.reports.terminal import show_explanations

    show_explanations(verdict, chosen, options.site, Console())
    return verdict.exit_code
