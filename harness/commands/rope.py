"""``firstdiff rope``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstdiff.commands.printing import print_result
from firstdiff.dumps import open_trace
from firstdiff.engines.identity import check_trace, identity
from firstdiff.engines.opening import open_reference
from firstdiff.errors import UsageError
from firstdiff.rope.fit import describe as describe_fit
from firstdiff.rope.fit import fits_of
from firstdiff.rope.table import describe, rope_table
from firstdiff.rope.turns import rotation_of

MOST_POSITION = 2**31 - 1  # llama_pos is int32


def rope_command(
    *,
    model: Path,
    positions: Sequence[int] | None = None,
    pairs: Sequence[int] | None = None,
    trace: Path | None = None,
    tokens: Sequence[int] | None = None,
    names: str | None = None,
    layer: int = 0,
) -> tuple[str, dict[str, Any], int]:
    """``firstdiff rope``: the expected table, or the angles of a candidate's trace beside the expected ones.

    Names, tokens and layouts of the trace are understood as :func:`firstdiff.runs.candidates.judge_candidates`
    understands them.

    Returns
    -------
    Text, JSON, and exit code: 1 where the candidate turns by other angles.

    Raises
    ------
    UsageError
        For a model that does not rotate, for a position, pair or layer that there is not, or for a trace without what
        is fitted.
    ModelError, TraceError
        For files that cannot be read, or a trace of another model.
    """
    opened = open_reference(model)
    turned = rotation_of(opened).dim
    if (pair := next((p for p in pairs or () if not 0 <= p < turned // 2), None)) is not None:
        raise UsageError(f"--pairs {pair}: a head of {turned} has pairs 0 to {turned // 2 - 1}")
    if (where := next((p for p in positions or () if not 0 <= p <= MOST_POSITION), None)) is not None:
        raise UsageError(f"--positions {where}: a position is a whole number from 0 to {MOST_POSITION:,}")
    if trace is None:
        if tokens is not None:
            raise UsageError("--tokens: are those of a trace that does not say them: give --trace too")
        table = rope_table(opened, (0, 1, 2) if positions is None else positions)
        return describe(table, pairs), table.plain(pairs), 0
    given = open_trace(trace, tokens=tokens, names=names)
    check_trace(given, opened, identity(opened))
    fits = fits_of(opened, given, layer)
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
            tokens=options.tokens,
            names=options.names,
            layer=options.layer,
        ),
    )
