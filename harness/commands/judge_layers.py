"""``firstdiff judge-layers``."""

from __future__ import annotations

import argparse
import json

import numpy as np

from firstdiff.commands.watching import watched
from firstdiff.engines.opening import open_reference
from firstdiff.errors import UsageError
from firstdiff.model.layer_bytes import bytes_of
from firstdiff.runs import layers
from firstdiff.runs.folder import make_folder
from firstdiff.runs.run import begun
from firstdiff.verdict.ranges import spans


def judge_layers(options: argparse.Namespace) -> int:
    """Judge some layers of a trace into a part, or print which bytes of the file each layer needs."""
    if options.bytes:
        model = open_reference(options.model, tier=options.tier)
        print(json.dumps(bytes_of(model), indent=1))
        return 0
    if options.trace is None or options.out is None:
        missing = "TRACE" if options.trace is None else "--out"
        raise UsageError(f"judge-layers: {missing} is missing: give a trace, and a folder for the part with --out")
    with watched(options.out) as progress:
        run = begun(options.model, progress=progress, tier=options.tier)
        wanted = frozenset(range(run.model.hp.n_layer)) if options.layers is None else options.layers
        part = layers.judge_layers(
            run, options.trace, wanted, witness=options.witness, names=options.names, partial=options.partial
        )
        make_folder(options.out)
        path = layers.keep_part(options.out, part)
    shown = spans(np.array(part.layers), run.model.hp.n_layer)
    print(f"{len(part.candidate.sites):,} sites are judged, of layers {shown}: {path}")
    print("Give the folders of all parts to firstdiff merge, for the verdict.")
    return 0
