"""Right engines of which only logits are seen: ``python tests/bench/clean_boxes.py``.

The engine in C is probed on models of random shapes with prompts of random tokens, and the reference in any arithmetic
that engines compute in. None may be accused. The table says how far each tensor that is read is off in float32; it is
kept in tests/data/clean-boxes.txt.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

import numpy as np
from black_box_engine import RUN_BY

from builders.black_boxes import ReferenceBox
from builders.engines import compile_engine
from builders.models import in_blocks, synthetic
from builders.own_engine import SHAPE
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.engine import open_model
from firstdiff.probing.arithmetics import ARITHMETICS
from firstdiff.probing.engine import BlackBox, CommandEngine
from firstdiff.probing.probing import probe
from firstdiff.runs.run import Run
from firstdiff.verdict import Verdict

MOST_TOKENS = 14


def drawn(seed: int, folder: Path) -> tuple[Path, tuple[int, ...]]:
    """A model of a random shape, and a prompt."""
    rng = np.random.default_rng(seed)
    shape: dict[str, Any] = {
        **SHAPE,
        "n_layer": int(rng.integers(2, 9)),
        "n_embd": int(rng.choice([64, 128, 192])),
        "n_head": int(rng.choice([4, 8])),
        "n_head_kv": int(rng.choice([1, 2, 4])),
        "head_dim": int(rng.choice([8, 16, 32])),
        "n_ff": int(rng.choice([96, 160, 256, 384])),
        "rope_factors": bool(rng.integers(2)),
        "biases": bool(rng.integers(2)),
        "rope_scale": float(rng.choice([1, 0.5])),
    }
    kind = str(rng.choice(["F32", "Q8_0", "Q4_0", "Q4_1"]))
    count = int(rng.integers(2, MOST_TOKENS))
    tokens = tuple(int(token) for token in rng.choice(np.arange(3, SHAPE["n_vocab"]), count, replace=False))
    made = synthetic(folder / "model.gguf", **shape) if kind == "F32" else in_blocks(kind, folder, **shape)
    return made, tokens


def box(seed: int, program: Path, folder: str) -> BlackBox:
    """The engine in C, or the reference in an arithmetic, which gives all logits or the last token's."""
    rng = np.random.default_rng(seed + 1_000_000)
    if rng.integers(2):
        return CommandEngine.of(f"{shlex.quote(str(program))} {RUN_BY}", folder, 60.0)
    name = str(rng.choice(ARITHMETICS[1:]))
    return ReferenceBox(arithmetic=arithmetic_named(name), decodes=bool(rng.integers(2)), last=not rng.integers(3))


def one(job: tuple[Path, int]) -> tuple[int, Verdict]:
    """Probe an engine on one model."""
    program, seed = job
    with tempfile.TemporaryDirectory() as name:
        path, tokens = drawn(seed, Path(name))
        engine = box(seed, program, name)
        probes = Path(name) / "probes"
        probes.mkdir()
        return seed, probe(Run(open_model(path)), engine, tokens, probes)


def report(found: Sequence[tuple[int, Verdict]], seconds: float) -> Iterator[str]:
    """The lines of the table."""
    accused = [(seed, verdict) for seed, verdict in found if verdict.verdict != "agrees"]
    yield f"{len(found):,} right engines that only give logits, {len(accused):,} accused"
    yield ""
    yield "tensor           read   largest error   of its floor"
    plain = [verdict for _, verdict in found if verdict.arithmetic.get("linear") == "f32"]
    sites = [s for verdict in plain for s in verdict.sites if s.local_error is not None]
    for point in dict.fromkeys(s.point for s in sites):
        of = [s for s in sites if s.point == point]
        error = max(s.local_error or 0.0 for s in of)
        part = max((s.local_error or 0.0) / s.floor for s in of if s.floor)
        yield f"{point:15} {len(of):>5}   {error:13.1e}   {part:12.2f}"
    for seed, verdict in accused:
        first = verdict.first
        assert first is not None, "something diverges"
        yield f"  --start {seed} --count 1: {first.site}, error {first.local_error:.2g}, floor {first.floor:.2g}"
    yield f"{seconds:.0f} s"


def main() -> int:
    """Probe all, print the table, and write it where asked; the exit code is 1 where a right engine is accused."""
    parser = argparse.ArgumentParser("clean_boxes", description=__doc__)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--start", type=int, default=0, help="the number of the first")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start, found = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as name, multiprocessing.get_context("spawn").Pool(2) as pool:
        program = compile_engine(Path(name), None, None)
        jobs = [(program, options.start + number) for number in range(options.count)]
        for done, outcome in enumerate(pool.imap(one, jobs), 1):
            found.append(outcome)
            if done % 50 == 0:
                sys.stderr.write(f"{done} of {len(jobs)} after {time.perf_counter() - start:.0f} s\n")
    text = "\n".join(report(found, time.perf_counter() - start)) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return int(any(verdict.verdict != "agrees" for _, verdict in found))


if __name__ == "__main__":
    sys.exit(main())
