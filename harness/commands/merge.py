"""``firstdiff merge``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from firstdiff.commands.gate import keep_all, show_all
from firstdiff.commands.options import budget_of
from firstdiff.commands.printing import show_verdict
from firstdiff.commands.watching import watched
from firstdiff.engines.opening import Tier
from firstdiff.errors import UsageError
from firstdiff.gate.merging import merged
from firstdiff.runs import layers
from firstdiff.runs.folder import make_folder
from firstdiff.runs.run import begun


def merge(options: argparse.Namespace) -> int:
    """Make one of the parts of a gate, or of a trace that was judged layer by layer."""
    of_layers = [(part / layers.FILE).is_file() for part in options.part]
    if any(of_layers):
        if not all(of_layers):
            other = options.part[of_layers.index(False)]
            raise UsageError(f"{other}: holds no layers of a trace ({layers.FILE}), and other parts do: give one kind")
        return _layers(options)
    _refuse(options, ("html", "model", "trace", "witness", "budget", "jobs"), "layers of a trace")
    make_folder(options.out)
    cases = merged(options.part, options.out)
    every = [c.case for c in cases]
    text, code = keep_all(cases, options.out, kind=options.format, every=every, history=options.history)
    return show_all(text, cases, code, options.out)


def _refuse(options: argparse.Namespace, names: Sequence[str], of: str) -> None:
    """Refuse options that say nothing here.

    Raises
    ------
    UsageError
        With the first of them.
    """
    for name in names:
        if getattr(options, name) is not None:
            raise UsageError(f"--{name}: is for {of}, and these parts are none: leave it out")


def _layers(options: argparse.Namespace) -> int:
    _refuse(options, ("history",), "the cases of a gate")
    parts = [(path, _here(layers.read_part(path), options)) for path in options.part]
    first = parts[0][1]
    with watched(options.out) as progress:
        tier: Tier = "graph" if first.tier == "graph" else "hand"
        run = begun(
            options.model or Path(first.model), out=options.out, progress=progress, budget=budget_of(options), tier=tier
        )
        make_folder(options.out)
        verdict = layers.merged(run, parts)
    # Whatever the parts were: the command of which one part would have been the whole.
    witness = () if first.witness is None else ("--witness", first.witness.trace)
    names = () if first.names is None else ("--names", first.names)
    given = ["judge-layers", first.model, first.candidate.trace, *witness, *names]
    options.arguments = [*given, "--tier", "graph"] if tier == "graph" else given
    return show_verdict(verdict, options, options.out)


def _here(part: layers.Part, options: argparse.Namespace) -> layers.Part:
    """A part whose traces lie where this machine has them."""
    if options.trace is not None:
        part = replace(part, candidate=replace(part.candidate, trace=str(options.trace)))
    if options.witness is not None and part.witness is not None:
        part = replace(part, witness=replace(part.witness, trace=str(options.witness)))
    return part
