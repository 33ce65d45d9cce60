"""``firstdiff merge``."""

from __future__ import annotations

import argparse

from firstdiff.commands.gate import keep_all, show_all
from firstdiff.gate.merging import merged
from firstdiff.runs.folder import make_folder


def merge(options: argparse.Namespace) -> int:
    """Make one of the parts of a gate, and print it as the gate does."""
    make_folder(options.out)
    cases = merged(options.part, options.out)
    text, code = keep_all(
        cases, options.out, kind=options.format, every=[c.case for c in cases], history=options.history
    )
    return show_all(text, cases, code, options.out)
