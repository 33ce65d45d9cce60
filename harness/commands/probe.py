"""``firstdiff probe``."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import suppress
from pathlib import Path

from firstdiff.commands.options import TIMEOUT, budget_of, source_of, wants_details
from firstdiff.commands.printing import show_verdict
from firstdiff.commands.watching import watched
from firstdiff.errors import UsageError
from firstdiff.interruption import ended_by_request
from firstdiff.probing.engine import BlackBox, CommandEngine
from firstdiff.probing.most_probable import LEAST, MOST
from firstdiff.probing.probing import probe as probed
from firstdiff.probing.prompt import probe_tokens
from firstdiff.probing.server import ServerEngine
from firstdiff.runs.folder import run_folder
from firstdiff.runs.run import begun


def probe(options: argparse.Namespace) -> int:
    """Judge an engine that gives logits, by models of our own making."""
    top = _top(options)
    out = options.out or run_folder(options.model)
    detailed = wants_details(options)
    with watched(out) as progress, ended_by_request():
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
                verdict = probed(run, _engine(options, name), tokens, Path(name), most=options.runs, top=top)
        except BaseException:
            with suppress(OSError):  # something is in it
                folder.rmdir()
            raise
    return show_verdict(verdict, options, out)


def _top(options: argparse.Namespace) -> int:
    """How many of its most probable tokens an engine is asked for; 0 for one that gives all logits."""
    if options.server is None:
        if options.top is not None:
            raise UsageError("--top is for --server only: an engine that is a command gives all logits")
        return 0
    if options.top is not None and options.top < LEAST:
        raise UsageError(f"--top: {options.top} token says nothing of a logit: give {LEAST} or more")
    return int(options.top or MOST + 1)


def _engine(options: argparse.Namespace, folder: str) -> BlackBox:
    timeout = options.timeout or TIMEOUT
    if options.server is not None:
        return ServerEngine.of(options.server, timeout, options.top, MOST + 1)
    return CommandEngine.of(options.engine, folder, timeout)
