"""``firstdiff hypotheses``."""

from __future__ import annotations

import argparse
import json
from shutil import get_terminal_size

from firstdiff.hypotheses import catalogue


def hypotheses(options: argparse.Namespace) -> int:
    """List the hypotheses, and what is measured where none of them explains."""
    from firstdiff.explaining.measured.statements import MEASURED

    rows = catalogue.listed(options.id, MEASURED)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(catalogue.one(rows[0]) if options.id else catalogue.table(rows, get_terminal_size().columns))
    return 0
