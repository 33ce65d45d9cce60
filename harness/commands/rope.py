"""``firstdiff rope``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstdiff.commands.printing import print_result
from firstdiff.dumps import open_trace
from firstdiff.errors import UsageError
from firstdiff.model.engine import open_model
from firstdiff.rope.fit import describe as describe_fit
from firstdiff.rope.fit import fits_of
from firstdiff.rope.table import describe, rope_table

MOST_POSITION = 2**31 - 1  # llama_pos is int32


def rope_command(
    *,
    model: Path,
    positions: Sequence[int] | None = None,
    pairs: Sequence[int] | None = None,
    trace: Path | None = None,
    names: str | None = None,
    layer: int = 0,
) -> tuple[str, dict[str, Any], int]:
    """``firstdiff rope``: the expected table, or the angles of a candidate's trace beside the expected ones.

    Names and layouts of the trace are understood as :func:`firstdiff.runs.candidates.judge_candidates` understands
    them.

    Returns
    -------
    Text, JSON, and exit code: 1 where the candidate turns by other angles.

    Raises
    ------
    UsageError
        For a position, pair or layer that there is not, or a trace without what is fitted.
    ModelError, TraceError
        For files that cannot be read.
    """
    opened = open_model(model)
    half = opened.hp.head_dim // 2
    if (pair := next((p for p in pairs or () if not 0 <= p < half), None)) is not None:
        raise UsageError(f"--pairs {pair}: a head of {opened.hp.head_dim} has pairs 0 to {half - 1}")
    if (where := next((p for p in positions or () if not 0 <= p <= MOST_POSITION), None)) is not None:
        raise UsageError(f"--positions {where}: a position is a whole number from 0 to {MOST_POSITION:,}")
    if trace is None:
        table = rope_table(opened, (0, 1, 2) if positions is None else positions)
        return describe(table, pairs), table.plain(pairs), 0
    fits = fits_of(opened, open_trace(trace, names=names), layer)
    text = "\n\n".join(describe_fit(fit, positions, pairs) for fit in fits)
    return text, {fit.point: fit.plain() for fit in fits}, 0 if all(fit.agrees for fit in fits) else 1


def rope(options: argparse.Namespace) -> int:
    """Print the rope table, or a trace's angles."""
    return print_result(
        options,
        rope_command(
            model=options.model,
            positions=options.positions,
            pairs=options.pairs,
            trace=options.trace,
            names=options.names,
            layer=options.layer,
        ),
    )
