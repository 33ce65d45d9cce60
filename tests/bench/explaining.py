"""How long explaining takes: one site, and faults in every layer, known ones and what nothing explains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for builders

import numpy as np
from figures import Aim, Figure
from models import Subject

from builders.hypotheses import plant
from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Step, Trace
from firstdiff.explaining.explanations import explain
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses.planting import record_planted
from firstdiff.model.arithmetic import F64, Array
from firstdiff.model.engine import Model, open_model
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import Status

TOKENS = [1, *range(300, 339)]
NOISE = 1e-2
ONE, ALL = Aim("≤ 3 s", 3, of_ratio=False), Aim("≤ 60 s", 60, of_ratio=False)


def explaining(subject: Subject, rounds: int) -> list[Figure]:
    """Measure ``explain``, the counter-check included, after everything is judged."""
    model = open_model(subject.path)
    writer = MemoryWriter()
    record_planted(model, TOKENS, writer, arithmetic=F64, decode=0)
    middle = model.hp.n_layer // 2
    alone = {str(s): noisy(writer.steps, writer.tensors, {s}) for s in writer.tensors if s.layer in (middle, None)}
    once = {site: seconds(model, trace, only=site)() for site, trace in alone.items()}
    slowest = max(once, key=lambda site: once[site])
    everywhere = noisy(writer.steps, writer.tensors, {s for s in writer.tensors if s.layer is not None})
    faults = [seconds(model, plant(model, TOKENS, (id_, None), decode=0)[0]) for id_ in ("rope-base", "nibble-order")]
    unknown, odd = seconds(model, alone[slowest], only=slowest), seconds(model, everywhere)
    lines = (
        ("a site that nothing explains, any", list(once.values()), ONE),
        (f"  the slowest of them: {slowest}", [unknown() for _ in range(rounds)], ONE),
        ("a rope base at every layer", [faults[0]() for _ in range(rounds)], ALL),
        ("a nibble order in every weight", [faults[1]() for _ in range(rounds)], ALL),
        ("what nothing explains, at every site of every layer", [odd()], ALL),
    )
    return [Figure(name, measured, "s", aim=aim) for name, measured, aim in lines]


def noisy(steps: Sequence[Step], tensors: Mapping[Site, Array], sites: set[Site]) -> Trace:
    """A trace with one per cent of noise at some sites."""
    rng = np.random.default_rng(0)
    made = {
        s: (x * (1 + NOISE * rng.standard_normal(x.shape))).astype(np.float32) if s in sites else x
        for s, x in tensors.items()
    }
    return Trace.from_arrays(steps, made, engine={"name": "noisy", "arithmetic": "f32"}, model={})


def seconds(model: Model, trace: Trace, only: str | None = None) -> Callable[[], float]:
    """Judge a trace; the call then explains it, or one site of it."""
    failures = Failures()
    done = replayed(model, trace, failures=failures)
    found, sites, alignment = done.found, done.sites, done.alignment
    if only is not None:
        sites = [
            replace(s, status=Status.INHERITS) if s.status is Status.DIVERGES and str(s.site) != only else s
            for s in sites
        ]

    def call() -> float:
        start = time.perf_counter()
        explain(model, trace, found, alignment, sites, failures=failures)
        assert not failures.noted, failures.noted
        return time.perf_counter() - start

    return call
