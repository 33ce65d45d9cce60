"""Faults that no table lists, drawn at random: ``python tests/bench/random_faults.py`` (``make bench-random``).

A call of the reference goes wrong at random places in a random way, the run is stored in a random dtype and judged.
What the verdict says is right if it gives the numbers of the fault on another prompt too, which it has not seen. The
table is kept in tests/data/random-faults.txt.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

import numpy as np
from diagnosis import model_at

from builders.every_architecture import toy
from builders.known_faults import BORDER, Plant, plant_known
from builders.other_prompt import Calls, gives_the_same, ran
from builders.random_faults import Drawn, draw
from firstdiff.dumps import Site
from firstdiff.engines.opening import open_reference
from firstdiff.explaining.explanations import explain
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE, Hypothesis, Scene
from firstdiff.hypotheses.planting import Planted
from firstdiff.judging.selections import selects
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import Explanation, Status

EXPERTS = "experts"
MODELS = ("Q8_0", "Q4_K_M", "qwen3", EXPERTS)
DTYPES = ("f32", "f16", "bf16")
TOKENS = 24


def written(folder: Path) -> dict[str, Path]:
    """The files of the models, made once: who has one mapped must not see it written again."""
    return {name: toy("qwen3moe", folder) if name == EXPERTS else model_at(folder, name) for name in MODELS}


@cache
def opened(path: Path, tier: str) -> Model:
    """A model, opened once a process."""
    return open_reference(path, tier="graph") if tier == "graph" else open_model(path)


def prompt(model: Model, seed: int) -> list[int]:
    """A random prompt."""
    most = min(300, model.hp.n_vocab)
    rng = random.Random(seed)
    return [rng.randrange(3, most) for _ in range(TOKENS)]


@cache
def runs(path: Path, tier: str) -> tuple[Calls, Calls]:
    """The right run of the prompt that faults are drawn for, and that of another."""
    model = opened(path, tier)
    return ran(model, tuple(prompt(model, 1))), ran(model, tuple(prompt(model, 2)))


@dataclass(frozen=True)
class Outcome:
    """What a verdict made of one fault."""

    seed: int
    model: str
    dtype: str
    kind: str
    says: str
    site: str
    visible: bool
    first: bool
    accused: tuple[str, ...]
    told: str
    claimed: str
    seconds: float


def one(job: tuple[dict[str, Path], int, bool]) -> Outcome | None:
    """Draw, plant, judge, and compare; None for a fault that changes nothing or leaves the dtype's range."""
    paths, seed, bare = job
    rng = random.Random(seed)
    name, dtype = rng.choice(MODELS), rng.choice(DTYPES)
    where = paths[name], "graph" if name == EXPERTS else "hand"
    model = opened(*where)
    right, other = runs(*where)
    calls = [
        (call, right.tensors[site].shape)
        for site, call in right.calls.items()
        if site.step == 0 and not selects(call) and right.tensors[site].any()
    ]
    drawn = next(draw(rng, calls))
    with np.errstate(all="ignore"):
        planted = plant_known(model, prompt(model, 1), [Planted(drawn.hypothesis, drawn.layer)], "random", decode=1)
    if planted is None or planted.beyond(dtype):
        return None
    return judged(model, planted, drawn, dtype, other, Outcome(
        seed, name, dtype, drawn.kind, drawn.says, f"{drawn.point}-{drawn.layer}", False, False, (), "", "", 0.0,
    ), {} if bare else TABLE)  # fmt: skip


def of_table(job: tuple[dict[str, Path], str, str, str]) -> Outcome | None:
    """Plant one of the table's own faults, and have it told without the table; None where it does not apply."""
    paths, name, id_, dtype = job
    model = opened(paths[name], "hand")
    hypothesis, planted_with = TABLE[id_], {}
    layer = None if hypothesis.outside_layers else model.hp.n_layer // 2

    def make(call: Call, scene: Scene) -> Call | None:
        if call.point not in planted_with:
            first = hypothesis.first(call, scene)
            if first is None:
                return None
            planted_with[call.point] = first[0]
        return hypothesis.apply(call, scene, planted_with[call.point])

    drawn = Drawn(id_, "", layer, hypothesis.told({}, model), make)
    other = runs(paths[name], "hand")[1]
    plain = Hypothesis(
        id_, hypothesis.where, hypothesis.says, "", lambda call, scene, _: make(call, scene), rounds=hypothesis.rounds
    )
    with np.errstate(all="ignore"):
        planted = plant_known(model, prompt(model, 1), [Planted(plain, layer)], "table", decode=1)
    if planted is None or planted.beyond(dtype):
        return None
    blank = Outcome(0, name, dtype, id_, drawn.says, f"layer {layer}", False, False, (), "", "", 0.0)
    return judged(model, planted, drawn, dtype, other, blank, {})


def judged(
    model: Model, planted: Plant, drawn: Drawn, dtype: str, other: Calls, blank: Outcome, table: dict[str, Hypothesis]
) -> Outcome:
    """Judge a dump with a fault in it, and hold what is said of it against the fault on another prompt."""
    from dataclasses import replace

    start = time.perf_counter()
    failures = Failures()
    trace = planted.trace(dtype)
    done = replayed(model, trace, table=table, failures=failures)
    explanations, _ = explain(model, trace, done.found, done.alignment, done.sites, failures=failures, table=table)
    assert not failures.noted, failures.noted
    floors = {s.site: s.floor or 0.0 for s in done.sites}
    clear = [s for s, size in planted.changes.items() if size > BORDER * floors[s]]
    diverging = [s.site for s in done.sites if s.status is Status.DIVERGES]
    accused = tuple(str(s) for s in diverging if s not in planted.changes)
    told, claimed = "unseen", ""
    if clear:
        e = next((e for e in explanations if clear[0] in e.sites), None)
        told, claimed = ("missing", "") if e is None else told_of(model, e, drawn, clear[0], other)
    return replace(
        blank,
        visible=bool(clear),
        first=not clear or (bool(diverging) and planted.changes.get(diverging[0], 0.0) > 0),
        accused=accused,
        told=told,
        claimed=claimed,
        seconds=time.perf_counter() - start,
    )


def told_of(model: Model, e: Explanation, drawn: Drawn, site: Site, other: Calls) -> tuple[str, str]:
    """Whether an explanation is right, and what it says."""
    if e.hypothesis is None:
        return "described", "; ".join(e.findings[:2])
    right = gives_the_same(model, e, drawn.make, site, other)
    return {True: "right", False: "wrong", None: "elsewhere"}[right], f"{e.hypothesis}: {e.says}"


def report(outcomes: Sequence[Outcome], drawn: int, seconds: float) -> Iterator[str]:
    """The lines of the table."""
    seen = [o for o in outcomes if o.visible]
    yield (
        f"{drawn:,} faults drawn, of which {len(outcomes):,} change a number within the dtype's range, "
        f"{len(seen):,} of them clearly"
    )
    yield ""
    width = max((len(o.kind) for o in seen), default=4)
    yield f"{'fault':{width}}  seen  right  described  wrong"
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for o in sorted(seen, key=lambda o: o.kind):
        by_kind[o.kind].append(o)
    for kind, of in by_kind.items():
        told = Counter(o.told for o in of)
        left = told["described"] + told["missing"] + told["elsewhere"]
        yield f"{kind:{width}}  {len(of):4}  {told['right']:5}  {left:9}  {told['wrong']:5}"
    yield ""
    for what, of in (("in all", seen), *((dtype, [o for o in seen if o.dtype == dtype]) for dtype in DTYPES)):
        told = Counter(o.told for o in of)
        n = max(1, len(of))
        yield (
            f"{what}: told rightly {told['right']:,} of {len(of):,} ({100 * told['right'] / n:.1f} %), "
            f"wrongly {told['wrong']:,} ({100 * told['wrong'] / n:.2f} %)"
        )
    first = sum(o.first for o in seen)
    yield f"first site right: {first:,} of {len(seen):,}"
    yield f"a right site accused: {sum(bool(o.accused) for o in outcomes):,} of {len(outcomes):,}"
    yield ""
    for o in outcomes:
        if o.told == "wrong" or o.accused or (o.visible and not o.first):
            yield f"  {_line(o)} {o.accused[:2]}"
    yield f"{seconds:.0f} s"


def _line(o: Outcome) -> str:
    return f"seed {o.seed}: {o.kind}, {o.says} at {o.site} ({o.model}, {o.dtype}): {o.told} {o.claimed:.160}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the faults, print the table, and write it where asked."""
    parser = argparse.ArgumentParser("random_faults", description=__doc__)
    parser.add_argument("--count", type=int, default=4500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--bare", action="store_true", help="without the table of hypotheses")
    parser.add_argument("--table", action="store_true", help="the faults of the table, each told without the table")
    parser.add_argument("--only", type=int, metavar="SEED", help="one fault")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.only is not None:
        with tempfile.TemporaryDirectory() as name:
            sys.stdout.write(f"{one((written(Path(name)), options.only, options.bare))}\n")
        return 0
    start, outcomes = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as name:
        paths = written(Path(name))
        todo: list[Any] = [(paths, seed, options.bare) for seed in range(options.start, options.start + options.count)]
        if options.table:
            todo = [(paths, of, id_, dtype) for id_ in TABLE for of in MODELS if of != EXPERTS for dtype in DTYPES]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for done, outcome in enumerate(pool.imap(of_table if options.table else one, todo), 1):
                if outcome is not None:
                    outcomes.append(outcome)
                    if outcome.visible and outcome.told != "right":
                        sys.stderr.write(f"{_line(outcome)} {outcome.seconds:.1f} s\n")
                if done % 50 == 0:
                    sys.stderr.write(f"{done} of {len(todo)} after {time.perf_counter() - start:.0f} s\n")
    text = "\n".join(report(outcomes, len(todo), time.perf_counter() - start)) + "\n"
    sys.stdout.write(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
