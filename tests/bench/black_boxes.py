"""Every hypothesis planted in an engine that only gives logits: ``python tests/bench/black_boxes.py``.

The engine is the reference with one fault at the first, middle or last layer, and is probed as any engine is; with
``--engine c`` it is the one in C, each of whose bugs is planted. The table says how often the layer, the operation and
the cause are told rightly, and with how many runs. They are kept in tests/data/black-boxes.txt and black-boxes-c.txt.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

import black_box_engine
from black_box_outcome import Outcome, is_told
from diagnosis import model_at

from builders.black_boxes import ReferenceBox
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.model.engine import open_model
from firstdiff.probing.probing import most_runs, probe
from firstdiff.runs.run import Run

MODELS = ("Q8_0", "Q4_K_M", "qwen3")
TOKENS = (300, 45, 301, 17, 260, 303, 99, 46)


def one(job: tuple[Path, str, str, int]) -> Outcome | None:
    """Plant, probe and compare; None where the fault changes nothing in the model's own run."""
    path, name, id_, layer = job
    model, hypothesis = open_model(path), TABLE[id_]
    place = None if hypothesis.outside_layers else layer
    if hypothesis.outside_layers and layer:
        return None
    box = ReferenceBox([Planted(hypothesis, place)])
    box.settle(model, TOKENS)
    touched = [site for site in box.touched if site.point]
    if not touched:
        return None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            verdict = probe(Run(model), box, TOKENS, Path(folder))
        except Exception as e:  # noqa: BLE001 - whatever it is, it is told in the table
            told = f"{type(e).__name__}: {e}"
            return Outcome(name, id_, place, True, False, False, False, told, box.runs, 0, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    first, points = verdict.first, {site.point for site in touched}
    cause = next((e for e in verdict.explanations if e.hypothesis), None)
    where = f"{cause.inside or ''} {cause.extent}" if cause else ""
    return Outcome(
        name,
        id_,
        place,
        first is not None,
        first is not None and (place is None or first.layer == place),
        any(point in where.replace(",", " ").split() or f"{point}-{place}" in where for point in points)
        or (cause is not None and bool(cause.equals) and is_told(verdict, id_)),  # equal numbers, by other operations
        cause is not None and is_told(verdict, id_),
        "" if first is None else f"{first.site}: {cause.hypothesis if cause else 'not explained'} ({where.strip()})",
        box.runs,
        most_runs(model.hp.n_layer),
        seconds,
    )


def report(outcomes: Sequence[Outcome], seconds: float) -> Iterator[str]:
    """The lines of the table."""
    seen = [o for o in outcomes if o.seen]
    yield f"{len(outcomes):,} faults that change the model's logits, {len(seen):,} of them seen"
    for what, right in (
        ("layer", [o.right_layer for o in seen]),
        ("operation", [o.right_op for o in seen]),
        ("cause", [o.right_cause for o in seen]),
    ):
        yield f"the right {what:9}  {sum(right):,} of {len(right):,} ({100 * sum(right) / max(1, len(right)):.1f} %)"
    runs = sorted(o.runs for o in seen)
    if runs:
        over = sum(o.runs > o.most for o in seen)
        median = runs[len(runs) // 2]
        yield f"runs of the engine: median {median}, most {runs[-1]}; more than 2 log2(layers) + 12: {over}"
    yield ""
    for o in outcomes:
        if not (o.seen and o.right_layer and o.right_op and o.right_cause):
            yield f"  {o.model} {o.id} at {o.layer}: {o.told or 'not seen'} ({o.runs} runs, {o.seconds:.1f} s)"
    yield f"{seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe all, print the table, and write it where asked."""
    parser = argparse.ArgumentParser("black_boxes", description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--only", nargs="*", default=list(TABLE), metavar="ID")
    parser.add_argument("--engine", choices=("reference", "c"), default="reference")
    parser.add_argument("--layers", nargs="*", type=int, help="default: the first, a middle one and the last")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    start, outcomes = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as name:
        work, jobs = (one, []) if options.engine == "reference" else (black_box_engine.one, [])
        if options.engine == "c":
            jobs = black_box_engine.jobs(Path(name))
        for model in options.models if options.engine == "reference" else ():
            path = model_at(Path(name), model)
            last = open_model(path).hp.n_layer - 1
            layers = (0, last // 2, last) if options.layers is None else options.layers
            jobs += [(path, model, id_, layer) for id_ in options.only for layer in layers]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for done, outcome in enumerate(pool.imap(work, jobs), 1):
                if outcome is not None:
                    outcomes.append(outcome)
                if done % 50 == 0:
                    sys.stderr.write(f"{done} of {len(jobs)} after {time.perf_counter() - start:.0f} s\n")
    text = "\n".join(report(outcomes, time.perf_counter() - start)) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
