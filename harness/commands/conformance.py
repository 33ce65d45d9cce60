"""``firstdiff conformance``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from firstdiff.commands.options import TIMEOUT
from firstdiff.commands.printing import written
from firstdiff.commands.watching import watched
from firstdiff.conformance.running import Conformance
from firstdiff.conformance.suite import suite
from firstdiff.conformance.telling import badge, cases, exit_code, lines, record
from firstdiff.errors import UsageError
from firstdiff.interruption import ended_by_request
from firstdiff.probing.engine import CommandEngine
from firstdiff.runs.folder import keep
from firstdiff.verdict.writing import strict


def conformance(options: argparse.Namespace) -> int:
    """Run an engine through the suite, or write the models of it."""
    tests = suite(options.level)
    if options.only:
        names = {test.name for test in tests}
        if unknown := [name for name in options.only if name not in names]:
            raise UsageError(f"--only: there is no test {unknown[0]!r:.80}: leave --only out to see all names")
        tests = [test for test in tests if test.name in options.only or test is tests[0]]
    with (
        watched() as progress,
        ended_by_request(),
        tempfile.TemporaryDirectory(prefix="firstdiff-") as name,
    ):
        engine = CommandEngine.of(options.engine, name, options.timeout or TIMEOUT)
        running = Conformance(engine, Path(name), progress=progress)
        results = running.run(tests)
    if options.badge is not None:
        keep(options.badge, json.dumps(badge(results)) + "\n")
    if options.junit is not None:
        keep(options.junit, written(cases(results), "junit"))
    if options.json:
        print(json.dumps(strict(record(results, running.arithmetic)), indent=1, allow_nan=False))
    else:
        width = shutil.get_terminal_size().columns
        sys.stdout.write("\n".join(lines(results, running.arithmetic, width=width)) + "\n")
    return exit_code(results)
