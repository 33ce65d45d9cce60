"""llama.cpp judged by its own graph, on a tiny model of every architecture: ``python tests/bench/architectures.py``.

Each architecture is run with weights and caches in several types, with and without flash attention; a line says how
many nodes were judged, which were not, and the largest error over its floor. The table is kept in
tests/data/architectures.txt.
Each model is run in a process of its own: some assertions of llama.cpp end it. The exit code is 1 if a node diverges.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

from lines import printed

from builders.every_architecture import ARCHITECTURES, toy
from builders.models import quantised
from firstdiff.engines.llamacpp import Attention
from firstdiff.runs.graph_certificate import certify_graph
from firstdiff.runs.prompt import Input
from firstdiff.verdict import Status

TYPES = {"F32": None, "F16": 1, "Q8_0": 7, "Q4_K_M": 15, "IQ4_XS": 30, "IQ3_S": 26, "MXFP4": 38}
"""Weights, and llama.cpp's file type; in MXFP4 are the experts alone."""

RUNS = (
    *((kind, False, "f16") for kind in TYPES),
    ("F32", True, "f16"),
    ("F32", False, "bf16"),
    ("F32", False, "q8_0"),
    ("F32", True, "q8_0"),
)
"""Type of the weights, whether attention is flash attention, and the type of the cache."""

PROMPT, DECODE = 9, 2


@dataclass(frozen=True, slots=True)
class Row:
    """What was found of one architecture in one run; `failed` is why it was not run."""

    arch: str
    nodes: int = 0
    worst: float = 0.0
    at: str = ""
    unjudged: int = 0
    diverging: tuple[str, ...] = ()
    failed: str = ""


def judged(arch: str, kind: str, *, flash: bool, kv: str) -> Row:
    """Make a model and judge llama.cpp on it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = toy(arch, folder)
        if (file_type := TYPES[kind]) is not None:
            path = quantised(path, file_type, folder / "quantised.gguf", pure=False)
        attention = Attention.of(flash=flash, kv=kv)
        tokens = tuple(range(3, 3 + PROMPT))
        verdict = certify_graph(
            path, Input(tokens=tokens), folder / "out", decode=DECODE, threads=1, attention=attention
        )
    shares = [(s.local_error / s.floor, str(s.site)) for s in verdict.sites if s.local_error is not None and s.floor]
    worst, at = max(shares)
    unjudged = sum(s.status is Status.NOT_COMPARABLE for s in verdict.sites)
    return Row(arch, len(verdict.sites), worst, at, unjudged, tuple(str(s.site) for s in verdict.diverging))


def in_a_process(arch: str, kind: str, *, flash: bool, kv: str) -> Row:
    """The same in a process of its own, which an assertion may end."""
    arguments = [sys.executable, __file__, "--one", arch, kind, str(int(flash)), kv]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return Row(arch, failed=re.sub(r"\S*/|^firstdiff\S*: ", "", last)[:100])
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def report(architectures: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The lines of the table, each with the number of nodes that diverge."""
    start = time.perf_counter()
    nodes = unjudged = diverging = 0
    whole = set(architectures)
    for kind, flash, kv in RUNS:
        with ThreadPool(2) as pool:
            rows = pool.map(partial(in_a_process, kind=kind, flash=flash, kv=kv), architectures)
        ran = [row for row in rows if not row.failed]
        whole -= {row.arch for row in rows if row.failed and not flash and kv == "f16"}
        how = f"{kind}{', flash attention' * flash}{f', cache in {kv}' * (kv != 'f16')}"
        yield f"{how}: {len(ran)} architectures, {sum(r.nodes for r in ran):,} nodes", 0
        top = sorted(ran, key=lambda row: -row.worst)[:5]
        yield "  nearest to the floor: " + ", ".join(f"{r.arch} {r.worst:.2f} ({r.at})" for r in top), 0
        for row in rows:
            if row.failed:
                yield f"  not run: {row.arch}: {row.failed}", 0
            elif row.diverging or row.unjudged:
                yield f"  {row.arch}: {row.unjudged} not judged, diverging {row.diverging[:4]}", len(row.diverging)
        nodes, unjudged = nodes + sum(r.nodes for r in ran), unjudged + sum(r.unjudged for r in ran)
        diverging += sum(len(r.diverging) for r in ran)
        yield "", 0
    share = 100 * (nodes - unjudged) / max(1, nodes)
    yield f"{len(whole)} of {len(architectures)} architectures run with every type of weights", 0
    yield f"{nodes:,} nodes, {share:.2f} % of them judged, {diverging} diverge; {time.perf_counter() - start:.0f} s", 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, print the table, and write it where asked."""
    parser = argparse.ArgumentParser("architectures", description=__doc__)
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        arch, kind, flash, kv = options.one
        row = judged(arch, kind, flash=flash == "1", kv=kv)
        sys.stdout.write(json.dumps({name: getattr(row, name) for name in Row.__slots__}) + "\n")
        return 0
    return 1 if printed(report(options.architectures.split(",")), options.out) else 0


if __name__ == "__main__":
    sys.exit(main())
