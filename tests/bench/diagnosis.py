"""How often the diagnosis is right: ``python tests/bench/diagnosis.py`` (``make bench-diagnosis``).

Every hypothesis is planted, in every model, at every place, stored in every dtype, and the verdict is held against
what was planted. The table is kept in tests/data/diagnosis.txt.
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
from statistics import median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is: more threads spin while they wait
sys.path.append(str(Path(__file__).parents[1]))  # for builders

from builders.hypotheses import OF_GRAPHS
from builders.known_faults import SHAPES, Outcome, held, places, plant_known, planted_at, tokens_of
from builders.models import MIXED, SMOLLM2, quantised
from builders.other_prompt import OnAnotherPrompt
from builders.tiny_models import tiny
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.model.engine import Model, open_model
from firstdiff.model.synthetic import write_llama

DTYPES = ("f32", "f16", "bf16")
TINY = {"qwen2": "Q4_K_M", "qwen3": "Q8_0"}
"""Of other architectures: made by llama.cpp, six layers of each, in these types."""

MODELS = ("SmolLM2", *SHAPES, *TINY)
SEVERAL = 20  # runs with two, and with three faults, a model and dtype


def model_at(folder: Path, name: str) -> Path:
    """The file of a model, made if it is synthetic."""
    if name == "SmolLM2":
        return SMOLLM2
    if name in TINY:
        return tiny(name, folder, file_type=TINY[name], n_layer=6)
    path = folder / f"{name}.gguf"
    if not path.exists():
        plain = write_llama(folder / f"{name}.f32.gguf", SHAPES[name])
        quantised(plain, MIXED[name], path, pure=False)
        plain.unlink()
    return path


@cache
def opened(path: Path) -> Model:
    """A model, opened once a process."""
    return open_model(path)


@dataclass(frozen=True)
class Job:
    """What one process does at a time: one hypothesis, or a few at once, on one model."""

    kind: str
    path: Path
    name: str
    ids: tuple[str, ...]
    dtypes: tuple[str, ...] = DTYPES
    seed: int = 0


def work(job: Job) -> tuple[str, list[Outcome]]:
    """Plant, judge, and compare."""
    model, tokens = opened(job.path), tokens_of(job.name)
    return job.kind, list(JOBS[job.kind](job, model, tokens))


def _singles(job: Job, model: Model, tokens: Sequence[int]) -> Iterator[Outcome]:
    (hypothesis,) = (TABLE[id_] for id_ in job.ids)
    for where, layer in places(hypothesis, model).items():
        planted = planted_at(model, tokens, hypothesis, layer, where)
        if planted is not None:
            yield from (held(model, planted, dtype, name=job.name) for dtype in job.dtypes)


def _left_out(job: Job, model: Model, tokens: Sequence[int]) -> Iterator[Outcome]:
    (hypothesis,) = (TABLE[id_] for id_ in job.ids)
    table = {id_: h for id_, h in TABLE.items() if id_ != hypothesis.id}
    where, layer = next((w, n) for w, n in places(hypothesis, model).items() if w in ("middle", "outside"))
    planted = planted_at(model, tokens, hypothesis, layer, where)
    if planted is None:
        return
    same = OnAnotherPrompt(model, tuple(tokens), hypothesis)
    yield from (held(model, planted, dtype, name=job.name, table=table, same=same) for dtype in job.dtypes)


def _several(job: Job, model: Model, tokens: Sequence[int]) -> Iterator[Outcome]:
    rng = random.Random(job.seed)
    faults = []
    for id_ in job.ids:
        layer = None if TABLE[id_].outside_layers else rng.randrange(model.hp.n_layer)
        faults.append(Planted(TABLE[id_], layer))
    planted = plant_known(model, tokens, faults, "some")
    if planted is not None:
        yield held(model, planted, job.dtypes[job.seed % len(job.dtypes)], name=job.name)


JOBS = {"single": _singles, "left out": _left_out, "several": _several}


def jobs(
    folder: Path, models: Sequence[str], ids: Sequence[str], kinds: Sequence[str], dtypes: tuple[str, ...]
) -> list[Job]:
    """Everything there is to do."""
    made = []
    for name in models:
        path = model_at(folder, name)
        for kind in ("single", "left out"):
            if kind in kinds:
                made += [Job(kind, path, name, (id_,), dtypes) for id_ in ids]
        if "several" in kinds:
            rng = random.Random(0)
            for seed in range(2 * SEVERAL * len(DTYPES)):
                made.append(Job("several", path, name, tuple(rng.sample(ids, 2 + seed % 2)), dtypes, seed))
    return made


# The table


def report(results: dict[str, list[Outcome]], seconds: float) -> str:
    """The confusion table, and the shares under it."""
    lines = []
    apart = sum(o.beyond for of in results.values() for o in of)
    results = {kind: [o for o in of if not o.beyond] for kind, of in results.items()}
    if singles := results.get("single"):
        lines += ["Planted alone", "", *_table(singles), "", *_shares(singles), ""]
    if left_out := results.get("left out"):
        lines += ["Planted with the hypothesis taken out of the table", "", *_claims(left_out), ""]
    if several := results.get("several"):
        lines += ["Two and three at once", "", *_together(several), ""]
    left = (
        f"{apart:,} runs are left out: the fault makes numbers beyond the range of the dtype that they are stored in."
    )
    return "\n".join([*lines, left, f"{seconds:.0f} s in all"])


def _table(outcomes: Sequence[Outcome]) -> list[str]:
    by_id = defaultdict(list)
    for o in outcomes:
        by_id[o.ids[0]].append(o)
    width = max(map(len, by_id))
    head = f"{'planted':{width}}  runs  seen  site  named  same numbers  described  otherwise"
    lines = [head]
    for id_, of in by_id.items():
        seen = [o for o in of if o.visible]
        names = Counter(o.named[0] for o in seen)
        wrong = ", ".join(
            f"{name} {n}" for name, n in names.items() if name not in ("named", "equivalent", "described")
        )
        lines.append(
            f"{id_:{width}}  {len(of):4}  {len(seen):4}  {sum(o.site for o in seen):4}  {names['named']:5}"
            f"  {names['equivalent']:12}  {names['described']:9}  {wrong or '-'}"
        )
    missing = [id_ for id_ in TABLE if id_ not in by_id and id_ not in OF_GRAPHS]
    if missing:
        lines.append(f"applies to none of these models, or is out of range in every run: {', '.join(missing)}")
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / whole:.2f} %)" if whole else "none"


def _shares(outcomes: Sequence[Outcome]) -> list[str]:
    seen = [o for o in outcomes if o.visible]
    told = [o for o in seen if o.named[0] != "equivalent"]
    bad = [o for o in outcomes if not o.site or o.accused]
    seconds = [o.seconds for o in outcomes]
    lines = [
        f"runs {len(outcomes):,}, of which the change is clearly above the floor in {len(seen):,}",
        f"first diverging site right: {_share(sum(o.site for o in seen), len(seen))}",
        f"explanation named first is right: {_share(sum(o.named[0] == 'named' for o in told), len(told))}",
        f"the same numbers under another name: {len(seen) - len(told):,}",
        f"runs with a site accused that nothing was done to: {sum(bool(o.accused) for o in outcomes)}",
        f"seconds a run, median and most: {median(seconds):.1f}, {max(seconds):.1f}",
    ]
    lines += [
        f"  wrong: {o.ids[0]} {o.model} {o.layers} {o.dtype} site {o.site} accused {o.accused[:3]}" for o in bad[:40]
    ]
    lines += [f"  {o.named[0]}: {o.ids[0]} {o.model} {o.layers} {o.dtype}" for o in told if o.named[0] != "named"][:60]
    return lines


def _claims(outcomes: Sequence[Outcome]) -> list[str]:
    seen = [o for o in outcomes if o.visible]
    wrong = [o for o in seen if o.named[0] not in ("described", "equivalent")]
    lines = [
        f"first diverging site right: {_share(sum(o.site for o in seen), len(seen))}",
        f"a wrong explanation claimed: {_share(len(wrong), len(seen))}",
    ]
    return lines + [f"  {o.ids[0]} {o.model} {o.dtype}: {o.named[0]}" for o in wrong]


def _together(outcomes: Sequence[Outcome]) -> list[str]:
    seen = [o for o in outcomes if o.visible]
    sites = sum(o.found == 1 and o.site for o in seen)
    all_named = sum(all(n in ("named", "equivalent", "invisible") for n in o.named) for o in seen)
    lines = [
        f"all sites found: {_share(sites, len(seen))}",
        f"all explained: {_share(all_named, len(seen))}",
    ]
    return lines + [
        f"  {', '.join(o.ids)} on {o.model} {o.dtype}: {', '.join(o.named)}; {o.found:.0%} of sites"
        for o in seen
        if o.found < 1 or not o.site or any(n not in ("named", "equivalent", "invisible") for n in o.named)
    ]


def _oddities(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What is not as it should be, to be seen while the benchmark runs."""
    for o in outcomes:
        if not o.site or o.accused or (o.visible and set(o.named) - {"named", "equivalent", "invisible"}):
            what = f"{', '.join(o.ids)} on {o.model} {o.layers} {o.dtype}{' (beyond its range)' * o.beyond}"
            yield f"{what}: {o.named} site {o.site} accused {o.accused[:3]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, print the report, and write it where asked."""
    parser = argparse.ArgumentParser("diagnosis", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--ids", default=",".join(TABLE))
    parser.add_argument("--kinds", default=",".join(JOBS))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    results: dict[str, list[Outcome]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        models, ids, kinds, dtypes = (
            given.split(",") for given in (options.models, options.ids, options.kinds, options.dtypes)
        )
        todo = jobs(Path(name), models, ids, kinds, tuple(dtypes))
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for count, (kind, outcomes) in enumerate(pool.imap_unordered(work, todo), 1):
                results[kind] += outcomes
                sys.stderr.writelines(f"{count} of {len(todo)}: {kind}: {told}\n" for told in _oddities(outcomes))
                if count % 10 == 0:
                    sys.stderr.write(f"{count} of {len(todo)} after {time.perf_counter() - start:.0f} s\n")
    order = list(TABLE)
    for outcomes in results.values():
        outcomes.sort(key=lambda o: ([order.index(i) for i in o.ids], MODELS.index(o.model), o.layers, o.dtype))
    text = f"models {options.models}; dumps in {options.dtypes}\n\n" + report(results, time.perf_counter() - start)
    sys.stdout.write(text + "\n")
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
