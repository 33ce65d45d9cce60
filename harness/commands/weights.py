"""``firstdiff weights``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firstdiff.commands.printing import print_result
from firstdiff.engines.opening import open_reference
from firstdiff.preflight.weight_statistics import describe as describe_statistics
from firstdiff.preflight.weight_statistics import weight_statistics
from firstdiff.preflight.weights import FILE, WeightsCheck, check_weights, describe


def weights_command(
    *, model: Path, names: Sequence[str] = (), against: Path | None = None
) -> tuple[str, dict[str, Any], int]:
    """``firstdiff weights``: statistics of the file's tensors, or a candidate's weights beside them.

    Parameters
    ----------
    model, names
        The file, and patterns of names; with `against`, only tensors that match are shown.
    against
        The candidate's weights, or the trace's folder that holds them.

    Returns
    -------
    Text, JSON, and exit code: 1 where a tensor is wrong, 4 where none could be compared.
    """
    opened = open_reference(model)
    if against is None:
        found = weight_statistics(opened, names)
        return describe_statistics(found), {"tensors": [w.plain() for w in found]}, 0
    check = check_weights(opened, against / FILE if against.is_dir() else against)
    if names:
        wanted = {w.name for w in weight_statistics(opened, names)}
        check = WeightsCheck(check.path, check.of, tuple(t for t in check.tensors if t.name in wanted), check.unknown)
    return describe(check), check.plain(), 4 if not check.tensors else 0 if check.agrees else 1


def weights(options: argparse.Namespace) -> int:
    """Print statistics of weights, or compare an engine's with the file's."""
    return print_result(options, weights_command(model=options.model, names=options.names, against=options.against))
