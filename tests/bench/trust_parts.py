"""The parts of the bench of trust: a dump is made, judged, and its verdict held against what is true."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from trust_draws import Recipe, covering, drawn
from trust_dumps import Garden, Truth, keeps, laid_out, may_be_unjudged, opened, recorded, recorded_sites, with_fault
from trust_judging import Judged, Outcome, judged

from builders.dump_faults import DUMP_FAULTS, NOTED, PUT_BACK, untouched
from builders.hypotheses import OF_GRAPHS
from builders.known_faults import BORDER, called, places
from firstdiff.dumps import Site, Trace
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.verdict import Status, Verdict

MOST_HIDDEN = 0.05
"""The highest floor that may hide a fault: that of bf16 over a dozen operations that were not recorded."""

OF_FEW_BITS = ("code-table", "digit-order", "scale-exponent", "grid-entry", "sign-mask", "grid-delta", "grid-scale")
FAULTS = [id_ for id_ in TABLE if id_ not in (*OF_FEW_BITS, *OF_GRAPHS)]
"""What is planted: not faults of types and operations that no model here has."""

TRIES = 40
"""Dumps drawn for a fault until it changes something in one."""


# Right engines


def clean(garden: Garden, seed: int) -> Outcome:
    """A dump of a right engine: nothing diverges, no cause is claimed, and what was recorded is judged."""
    cover = covering()
    recipe = cover[seed] if seed < len(cover) else drawn(seed)
    model = opened(garden.path(recipe["model"]))
    trace = laid_out(recorded(garden, recipe), recipe, model)
    done = judged(model, trace)
    found = list(_of_a_right_engine(done, trace, recipe))
    return _outcome("clean", seed, recipe["engine"], recipe, done, found)


def _of_a_right_engine(done: Judged, trace: Trace, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What is wrong with a verdict on a right engine's dump: the kind, and where."""
    if (verdict := done.verdict) is None:
        yield done.error.split(":")[0], done.error
        return
    if verdict.diverging:
        yield "diverges", _sites([s.site for s in verdict.diverging])
    for e in verdict.explanations:
        if e.hypothesis is not None:
            yield "cause claimed", f"{e.hypothesis} at {e.site}"
    for record in getattr(verdict, "dump", ()):
        if not _is_said_rightly(record.id, recipe):
            yield "dump finding", record.id
    if verdict.broken:
        yield "input contract", ", ".join(verdict.broken)
    yield from _coverage(verdict, trace, recipe)


def _is_said_rightly(id_: str, recipe: Recipe) -> bool:
    """Whether a finding says how the dump was reduced."""
    reduction = recipe["reduction"]
    words = {"padded": ("row", "padded"), "no step": ("begin", "middle", "step-0", "past"), "last row": ("row",)}
    return any(word in id_ for start, of in words.items() if reduction.startswith(start) for word in of)


def _coverage(verdict: Verdict, trace: Trace, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What was recorded, and neither judged nor excused."""
    there = recorded_sites(trace)
    left = [
        s.site
        for s in verdict.sites
        if s.site in there
        and s.status in (Status.NOT_COMPARABLE, Status.NOT_RECORDED)
        and not may_be_unjudged(recipe, s.site)
    ]
    unlisted = there - {s.site for s in verdict.sites}
    if left or unlisted:
        yield "not judged", _sites([*left, *sorted(unlisted, key=str)])
    steps = {site.step for site in there if site.point == "result_output"}
    free = not recipe["reduction"].startswith("no step 0")  # without the tokens before, no engine can run beside
    if free and steps - {logits.step for logits in verdict.logits}:
        yield "logits not compared", ""
    if verdict.verdict == "incomparable":
        yield "incomparable", ""


# One fault each


def faulty(garden: Garden, seed: int) -> Outcome:
    """A dump of an engine with one fault."""
    planted, recipe = _drawn_fault(garden, seed)
    (fault,) = planted
    model = opened(garden.path(recipe["model"]))
    run = with_fault(garden, recipe, planted)
    trace = laid_out(run.trace, recipe, model)
    truth = Truth.of(run, recipe, trace)
    done = judged(model, trace)
    where = "all" if fault.layer is None else fault.layer
    return _of_a_wrong_engine("faults", seed, f"{fault.hypothesis.id} at {where}", recipe, done, truth, fault)


def _drawn_fault(garden: Garden, seed: int) -> tuple[Sequence[Planted], Recipe]:
    """A fault of the table, each once in so many dumps, and a dump of a model in which it changes something."""
    rng = random.Random(f"fault {seed}")
    ids = random.Random(seed // len(FAULTS)).sample(FAULTS, len(FAULTS))
    hypothesis = TABLE[ids[seed % len(FAULTS)]]
    given = {"engine": "reference"}
    if hypothesis.id in ("mask-missing", "mask-offset"):  # who lets a later token be seen has no mask over its score
        given["scores"] = rng.choice(("raw", "scaled"))
    for attempt in range(TRIES):
        recipe = drawn(seed + 1_000_000 * attempt, given)
        model = opened(garden.path(recipe["model"]))
        at = places(hypothesis, model)
        if hypothesis.everywhere == "layout":
            at.pop("all", None)  # a layout, and no fault
        if hypothesis.id == "weight-swapped" and recipe["fused"] != "apart":
            at.pop("all", None)  # gate and up exchanged are the same dump as the activation on up, and up first
        planted = [Planted(hypothesis, at[rng.choice(list(at))])]
        if any(with_fault(garden, recipe, planted).changes.values()):
            break
    return planted, recipe


def _of_a_wrong_engine(
    part: str, seed: int, kind: str, recipe: Recipe, done: Judged, truth: Truth, fault: Planted
) -> Outcome:
    """Hold the verdict on a wrong engine's dump against what is wrong with it."""
    verdict = done.verdict
    if verdict is None:
        return _outcome(part, seed, kind, recipe, done, [(done.error.split(":")[0], done.error)])
    clear, floors = _clear(verdict, truth, recipe)
    accused = [s.site for s in verdict.diverging if not truth.answers_for(s)]
    ids = [fault.hypothesis.id]
    calls = {e.site: called(ids[0], ids, e) for e in verdict.explanations}
    zero = {e.site for e in verdict.explanations if e.hypothesis == "output-zero" and truth.zeros.issuperset(e.sites)}
    wrong = {
        site: name
        for site, name in calls.items()
        if name not in ("named", "equivalent", "described") and site not in zero
    }
    own = [e for e in verdict.explanations if set(clear) & set(e.sites)]
    right = any(called(ids[0], ids, e) in ("named", "equivalent") or e.site in zero for e in own)
    site = _first_is_right(verdict, truth, clear)
    found = [("right site accused", _sites(accused))] * bool(accused)
    found += [("wrong cause", ", ".join(f"{name} at {at}" for at, name in wrong.items()))] * bool(wrong)
    if clear and not site:
        first = verdict.first
        size = f"{truth.sizes[clear[0]]:.2g} over {floors[clear[0]]:.2g}"
        found.append(("first site wrong", f"{first and first.site} where it is {clear[0]} ({size})"))
    if clear and not right and not wrong:
        found.append(("not explained", _sites(clear)))
    return _outcome(part, seed, kind, recipe, done, found, seen=bool(clear), site=site, right=right)


def _clear(verdict: Verdict, truth: Truth, recipe: Recipe) -> tuple[list[Site], Mapping[Site, float]]:
    """The sites that a fault changes clearly above the floor, of those that can be judged; and the floors."""
    known = {s.site: s.floor for s in verdict.sites if s.floor}
    usual = max(known.values(), default=MOST_HIDDEN)  # for what was not judged
    floors = {site: min(known.get(site, usual), MOST_HIDDEN) for site in truth.sizes}
    unjudged = {s.site for s in verdict.sites if s.status is Status.NOT_COMPARABLE and may_be_unjudged(recipe, s.site)}
    shown = truth.recorded - unjudged
    clear = [site for site, size in truth.sizes.items() if site in shown and size > BORDER * floors[site]]
    return clear, floors


def _first_is_right(verdict: Verdict, truth: Truth, clear: Sequence[Site]) -> bool:
    """Whether the first divergence is the first clear change, or a fainter one before it."""
    order = {s.site: index for index, s in enumerate(verdict.sites)}
    first = verdict.first
    if first is None:
        return not clear
    return truth.answers_for(first) and (not clear or order[first.site] <= order.get(clear[0], len(order)))


# Faults of the dump


def spoilt(garden: Garden, seed: int) -> Outcome:
    """A faulty dump: every second one of a right engine, the others of one with a fault elsewhere."""
    kind = list(DUMP_FAULTS)[seed // 2 % len(DUMP_FAULTS)]
    for attempt in range(TRIES):
        number = seed + 1_000_000 * attempt
        made = _spoilt_right(garden, number, kind) if seed % 2 == 0 else _spoilt_wrong(garden, number, kind)
        if made is not None:
            return replace(made, seed=seed)
    raise AssertionError(f"no dump has the fault {kind}")


WHOLE = ("all", "no caches", "no caches, no scores")
"""Reductions in which every kind of fault of a dump can be seen."""


def _recipe(seed: int, given: Recipe) -> Recipe:
    reduction = random.Random(f"dump {seed}").choice(WHOLE)
    return drawn(seed, {"reduction": reduction, **given})


def _spoilt_right(garden: Garden, seed: int, kind: str) -> Outcome | None:
    recipe = _recipe(seed, {})
    model = opened(garden.path(recipe["model"]))
    plain = DUMP_FAULTS[kind](recorded(garden, recipe))
    if plain is None:
        return None
    trace = laid_out(plain, recipe, model)
    done = judged(model, trace)
    found = [f for f in _of_a_right_engine(done, trace, recipe) if f[0] in _BLAMED]
    found += [("not named", "")] * (not _is_named(done, kind))
    return _outcome("dump", seed, f"{kind}, right engine", recipe, done, found)


def _is_named(done: Judged, kind: str) -> bool:
    """Whether the fault of a dump is told, where there is a verdict."""
    if done.verdict is None or done.verdict.dump:
        return True
    return kind in NOTED and any(NOTED[kind] in note for note in done.verdict.notes)


_BLAMED = ("diverges", "cause claimed", "error", "too long")


def _spoilt_wrong(garden: Garden, seed: int, kind: str) -> Outcome | None:
    recipe = _recipe(seed, {"engine": "reference"})
    model = opened(garden.path(recipe["model"]))
    hypothesis = random.Random(f"both {seed}").choice(
        [TABLE[id_] for id_ in FAULTS if TABLE[id_].everywhere == "fault"]
    )
    fault = Planted(hypothesis, None if hypothesis.outside_layers else 0)
    run = with_fault(garden, recipe, [fault])
    plain = DUMP_FAULTS[kind](run.trace)
    if plain is None or not all(np.isfinite(run.trace[s]).all() for s in run.trace if s.point == "result_output"):
        return None  # where nothing is a number, nothing tells what was dumped
    same = set(plain.sites()) if kind in PUT_BACK else untouched(kind, run.trace)
    shown = {site: size for site, size in run.changes.items() if site in same and keeps(recipe["reduction"], site)}
    if max(shown.values(), default=0.0) < MOST_HIDDEN * BORDER:
        return None  # to be told from the fault of the dump, it must show where the dump is right
    trace = laid_out(plain, recipe, model)
    truth = Truth.of(run, recipe, trace)
    if kind not in NOTED:  # what the dump does not hold rightly is as if it were not recorded
        truth = replace(truth, recorded=truth.recorded & same)
    done = judged(model, trace)
    outcome = _of_a_wrong_engine("dump", seed, f"{kind}, wrong engine", recipe, done, truth, fault)
    outcome = replace(outcome, kind=f"{kind}, wrong engine", detail=f"({hypothesis.id}) {outcome.detail}")
    failed = tuple(f for f in outcome.failed if f != "not explained")
    return replace(outcome, failed=failed if _is_named(done, kind) else (*failed, "not named"))


PARTS: Mapping[str, Callable[[Garden, int], Outcome]] = {"clean": clean, "faults": faulty, "dump": spoilt}
COUNTS = {"clean": 2000, "faults": 3000, "dump": 10 * 2 * len(DUMP_FAULTS)}


def _outcome(
    part: str, seed: int, kind: str, recipe: Recipe, done: Judged, found: Sequence[tuple[str, str]], **more: bool
) -> Outcome:
    failed = tuple(dict.fromkeys(f for f, _ in found))
    detail = "; ".join(f"{f}: {where}" if where else f for f, where in found[:8])
    return Outcome(part, seed, kind, recipe, failed, detail, done.seconds, verdict=done.verdict, **more)


def _sites(sites: Sequence[Site]) -> str:
    more = f" and {len(sites) - 3} more" if len(sites) > 3 else ""
    return f"{', '.join(map(str, sites[:3]))}{more}"
