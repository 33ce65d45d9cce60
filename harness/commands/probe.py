"""``firstdiff probe``."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import suppress

from firstdiff.commands.options import TIMEOUT, budget_of, source_of, wants_details
from firstdiff.commands.printing import show_verdict
from firstdiff.commands.watching import watched
from firstdiff.probing.engine import CommandEngine
from firstdiff.probing.probing import probe as probed
from firstdiff.probing.prompt import probe_tokens
from firstdiff.runs.folder import run_folder
from firstdiff.runs.run import begun


def probe(options: argparse.Namespace) -> int:
    """Judge an engine that gives logits, by models of our own making."""
    out = options.out or run_folder(options.model)
    detailed = wants_details(options)
    with watched(out) as progress:
        run = begun(
            options.model,
            out=out,
            detailed=detailed,
            progress=progress,
            budget=budget_of(options),
            tier=options.tier,
        )
        tokens = probe_tokens(run, source_of(options))
        folder = run.folder()
        try:
            with tempfile.TemporaryDirectory(prefix="probes-", dir=folder) as name:
                engine = CommandEngine.of(options.engine, name, options.timeout or TIMEOUT)
                verdict = probed(run, engine, tokens, engine.folder.parent, most=options.runs)
        except BaseException:
            with suppress(OSError):  # something is in it
                folder.rmdir()
            raise
    return show_verdict(verdict, options, out)
