"""``firstdiff names``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from firstdiff.commands.name_table import name_table
from firstdiff.dumps import names_in
from firstdiff.dumps.understood import NameRow


def names(options: argparse.Namespace) -> int:
    """Show how the names of a dump were understood."""
    rows: Sequence[NameRow] = names_in(options.trace, names=options.names)
    if options.model is not None:
        from firstdiff.engines.opening import open_reference
        from firstdiff.judging.matching import meant

        rows = meant(open_reference(options.model), rows)
    if options.json:
        record = [
            {"name": r.name, "step": r.step, "point": r.point, "layer": r.layer, "nearest": r.nearest, "shape": r.shape}
            for r in rows
        ]
        print(json.dumps(record, indent=1))
        return 0
    from firstdiff.reports.words import runs

    print(name_table(rows, runs))
    return 0
