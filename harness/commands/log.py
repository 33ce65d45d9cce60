"""``firstdiff log``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from firstdiff.commands.printing import print_result
from firstdiff.commands.watching import watched
from firstdiff.dumps.log import read_log
from firstdiff.engines.opening import open_reference
from firstdiff.logs.compare import judge_log
from firstdiff.logs.record import text


def observe(
    *,
    log: Path,
    model: Path,
    tokens: Sequence[int],
    decode: int = 0,
    decoded: Sequence[int] = (),
    patterns: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[str, dict[str, Any], int]:
    """Read a log and judge it: the report, the verdict as JSON has it, and the exit code.

    Raises
    ------
    TraceError
        For a log or patterns that cannot be read.
    ModelError
        For a model that cannot be read, or tokens that it cannot run.
    """
    progress("reading the log")
    read = read_log(log, patterns=patterns)
    progress("running the reference")
    verdict = judge_log(open_reference(model), read, tokens, decode, decoded=decoded)
    return text(verdict), verdict.to_dict(), verdict.exit_code


def log(options: argparse.Namespace) -> int:
    """Hold a log's numbers against the reference's."""
    with watched() as progress:
        result = observe(
            log=options.log,
            model=options.model,
            tokens=options.tokens,
            decode=options.decode,
            decoded=options.decoded,
            patterns=options.patterns,
            progress=progress.say,
        )
    return print_result(options, result)
