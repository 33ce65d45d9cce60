"""Known faults: planting a bug, knowing what it changes, and holding the verdict against that."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from builders.relaid import stored_as
from firstdiff.dumps import Site, Step, Trace
from firstdiff.dumps.points import axes_of
from firstdiff.dumps.tensors import Held
from firstdiff.explaining.covering import PAIR_SEARCHES
from firstdiff.explaining.explanations import explain
from firstdiff.explaining.failures import Failures
from firstdiff.hypotheses import TABLE, Hypothesis, Scene
from firstdiff.hypotheses.planting import Planted, Planting, untouched
from firstdiff.hypotheses.table import EQUIVALENT
from firstdiff.judging.layouts import is_reordered
from firstdiff.judging.measure import LARGEST, SMALLEST_F16, measure
from firstdiff.judging.own_layout import OwnLayout
from firstdiff.judging.rows import counted
from firstdiff.model.arithmetic import F32, F64
from firstdiff.model.engine import Model
from firstdiff.model.probe import Call
from firstdiff.model.synthetic import Llama
from firstdiff.model.value import Value
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import Explanation, Status

Array = npt.NDArray[Any]

SHAPES = {
    "Q4_K_M": Llama(n_layer=6, biases=True, rope_factors=True, rope_base=500000.0),
    "Q8_0": Llama(n_layer=6, head_dim=64, biases=True, rope_scale=0.5),
}
"""Synthetic models, by the file type that they are quantised to."""

Same = Callable[[Explanation, Site], bool]

BORDER = 3.0
"""A change within this factor of the floor may be seen or not: rounding decides, and either is right."""


def tokens_of(name: str) -> list[int]:
    """Forty tokens: enough to tell the angles of a rotation apart."""
    return [1, *range(300, 339)] if name == "SmolLM2" else [1, *range(60, 99)]


@dataclass
class Knowing(Planting):
    """Records with faults planted, and measures what each planted change changes at its site: `right` is untouched."""

    changes: dict[Site, float] = field(default_factory=dict, init=False)
    right: dict[Site, Array] = field(default_factory=dict, init=False)
    made: dict[str, dict[Site, float]] = field(default_factory=dict, init=False)  # the same, by the plant that made it

    def _gone_wrong(self, plant: Planted, call: Call) -> Call | None:
        wrong = super()._gone_wrong(plant, call)
        if wrong is not None and len(self.planted) > 1:
            site = Site(call.step, call.layer, call.point)
            with np.errstate(all="ignore"):
                size = size_of(call.point, wrong.compute(self.arithmetic), call.compute(self.arithmetic))
            self.made.setdefault(plant.hypothesis.id, {})[site] = size
        return wrong

    def value(self, call: Call) -> Value:
        """Record, and measure a change against the right value on the same inputs."""
        before = len(self.touched)
        value = super().value(call)
        if len(self.touched) > before:
            with np.errstate(all="ignore"):
                right = untouched(call).compute(self.arithmetic)
            self.changes[self.touched[-1]] = size_of(call.point, value.array, right)
            self.right[self.touched[-1]] = right
        return value


@dataclass
class OwnKnowing(Knowing):
    """The same of an engine whose head dimensions stand in the other order, and that goes wrong on its own rows."""

    own: OwnLayout | None = None

    @property
    def scene(self) -> Scene:
        """What surrounds a call, as the engine has it."""
        assert self.own is not None
        there = self.own.there

        def lookup(site: Site) -> Array | None:
            x = self.tensors.get(site.key)
            return None if x is None else there(site.point, x)

        return Scene(self.own.model, self.arithmetic, lookup, self._ran)

    def _computed(self, call: Call) -> tuple[Array, bool]:
        assert self.own is not None
        value, touched = super()._computed(self.own.own(call))
        return self.own.back(call.point, value), touched


def size_of(point: str, wrong: Array, right: Array) -> float:
    """How large a change is, as a local error."""
    return measure(wrong, right, axes=axes_of(point, right.ndim), floor=0.0, seen=counted(point, right)).error


@dataclass(frozen=True)
class Plant:
    """A trace with faults in it, and what they change at which site, in execution order."""

    ids: tuple[str, ...]
    layers: str
    steps: tuple[Step, ...]
    tensors: Mapping[Site, Array]
    changes: Mapping[Site, float]
    made: Mapping[str, Mapping[Site, float]]

    def trace(self, dtype: str) -> Trace:
        """The trace as a dump in a dtype."""
        held = {}
        with np.errstate(over="ignore"):
            for site, x in self.tensors.items():
                held[site] = Held(stored_as(x, dtype), dtype)
        empty = Trace.from_arrays(self.steps, {}, engine={"name": "planted", "arithmetic": "f32"}, model={})
        return replace(empty, tensors=held)

    def beyond(self, dtype: str) -> bool:
        """Whether numbers leave the range of the dtype: infinite ones, or a token below f16's normal numbers."""
        if dtype != "f16":
            return not all(np.isfinite(x).all() for x in self.tensors.values())
        with np.errstate(all="ignore"):
            return not all(
                (np.abs(x) < LARGEST["f16"][0]).all()
                and np.sqrt((x.reshape(len(x), -1) ** 2).mean(-1)).min() > SMALLEST_F16
                for site, x in self.tensors.items()
                if site.point not in ("kq", "kq_soft_max")
            )


def plant_known(
    model: Model,
    tokens: Sequence[int],
    faults: Sequence[Planted],
    layers: str,
    *,
    decode: int = 1,
    own: OwnLayout | None = None,
) -> Plant | None:
    """Record the reference in float64 with faults in it; None where one of them does not apply.

    With `own` it is a dump of an engine of this layout, which goes wrong on its own rows.

    Faults that round what they are fed are planted in float32: rounded from float64, a value now and then falls on the
    other side than from the float32 that the dump holds, which no engine in float32 does.
    """
    rounds = any(fault.hypothesis.rounds for fault in faults)
    arithmetic = F32 if rounds else F64
    probe = Knowing(arithmetic, model, faults) if own is None else OwnKnowing(arithmetic, model, faults, own=own)
    steps = [Step(tuple(tokens), tuple(range(len(tokens))))]
    tensors: dict[Site, Array] = {}
    passes = model.forward(steps, probe)
    for index in range(1 + decode):
        with np.errstate(all="ignore"):  # what follows a fault may overflow
            logits = next(passes)
            tensors |= {Site.of_key(key, index): x.astype(np.float32) for key, x in probe.finish().items()}
        if len(steps) <= decode:
            total = sum(len(s.tokens) for s in steps)
            token = int(np.nan_to_num(logits[-1], nan=-np.inf).argmax())
            steps.append(Step((token,), (total,)))
    made = probe.made or {faults[0].hypothesis.id: probe.changes}
    if any(not max(made.get(fault.hypothesis.id, {}).values(), default=0.0) for fault in faults):
        return None  # one of them does not apply, or changes nothing here
    if own is not None:
        tensors = {site: own.there(site.point, x) for site, x in tensors.items()}
    return Plant(tuple(f.hypothesis.id for f in faults), layers, tuple(steps), tensors, probe.changes, made)


def planted_at(
    model: Model, tokens: Sequence[int], hypothesis: Hypothesis, layer: int | None, layers: str
) -> Plant | None:
    """Plant one hypothesis in a prompt, with a decoded step where no prompt shows it; None where neither does."""
    faults = [Planted(hypothesis, layer)]
    return plant_known(model, tokens, faults, layers, decode=0) or plant_known(model, tokens, faults, layers, decode=1)


def places(hypothesis: Hypothesis, model: Model) -> dict[str, int | None]:
    """The layers a hypothesis is planted at: first, middle, last and all; outside the layers, the one place."""
    if hypothesis.outside_layers:
        return {"outside": None}
    last = model.hp.n_layer - 1
    # Rows permuted at all layers are the same dump as an engine of that order with pairs that do not suit it.
    if hypothesis.everywhere == "arithmetic" or hypothesis.id == "qk-permutation":
        return {"first": 0, "middle": (last + 1) // 2, "last": last}
    return {"first": 0, "middle": (last + 1) // 2, "last": last, "all": None}


@dataclass(frozen=True)
class Outcome:
    """What a verdict made of a plant.

    `site` and `named` are whether the first site and the explanation are right; `named` is ``named``, ``equivalent``,
    ``described`` (not explained) or the wrong id. `visible` is whether the plant changes anything above the floor.
    """

    ids: tuple[str, ...]
    model: str
    layers: str
    dtype: str
    visible: bool
    beyond: bool
    site: bool
    found: float
    named: tuple[str, ...]
    accused: tuple[str, ...]
    seconds: float


def held(
    model: Model,
    planted: Plant,
    dtype: str,
    *,
    name: str,
    table: Mapping[str, Hypothesis] = TABLE,
    pairs: int = PAIR_SEARCHES,
    same: Same = lambda _e, _site: False,
) -> Outcome:
    """Judge a plant in one dtype, and hold the verdict against what was planted.

    `same` says whether what was measured at a site is the fault under another name.
    """
    from time import perf_counter

    start = perf_counter()
    trace = planted.trace(dtype)
    failures = Failures()
    done = replayed(model, trace, table=table, failures=failures)
    found, sites, alignment = done.found, done.sites, done.alignment
    explanations, _ = explain(model, trace, found, alignment, sites, failures=failures, table=table, pairs=pairs)
    assert not failures.noted, failures.noted
    seconds = perf_counter() - start
    floors = {s.site: s.floor or 0.0 for s in sites}
    permuted = {point for point, layout in alignment.layouts.items() if is_reordered(layout)}
    layout = all(TABLE[id_].everywhere == "layout" for id_ in planted.ids)  # stated, and no fault
    clear = [
        s for s, size in planted.changes.items() if size > BORDER * floors[s] and not (layout and s.point in permuted)
    ]
    faint = [s for s, size in planted.changes.items() if size > floors[s] / BORDER]
    diverging = [s.site for s in sites if s.status is Status.DIVERGES]
    accused = tuple(str(s) for s in diverging if s not in planted.changes)
    first = next(iter(diverging), None)
    until = faint.index(clear[0]) if clear else len(faint)
    right = first in faint[: until + 1] if clear else first is None or first in faint
    return Outcome(
        planted.ids,
        name,
        planted.layers,
        dtype,
        visible=bool(clear),
        beyond=planted.beyond(dtype),
        site=right,
        found=len(set(diverging) & set(clear)) / len(clear) if clear else 1.0,
        named=tuple(named(planted, explanations, id_, clear, floors, same) for id_ in planted.ids) if clear else (),
        accused=accused,
        seconds=seconds,
    )


def named(
    planted: Plant,
    explanations: Sequence[Explanation],
    id_: str,
    clear: Sequence[Site],
    floors: Mapping[Site, float],
    same: Same = lambda _e, _site: False,
) -> str:
    """What the verdict calls a planted fault: at the sites that it changes clearly."""
    own = planted.made.get(id_, {})
    sites = {s for s in clear if own.get(s, 0.0) > BORDER * floors[s]}
    if not sites:
        return "invisible"
    told = [e for e in explanations if sites & set(e.sites)]
    return min((called(id_, planted.ids, e, same, sites) for e in told), key=_rank, default="described")


def called(
    id_: str,
    ids: Sequence[str],
    e: Explanation,
    same: Same = lambda _e, _site: False,
    sites: Collection[Site] | None = None,
) -> str:
    if e.hypothesis is None:
        return "described"
    given = e.hypothesis.split(" + ")
    if id_ in given:
        return "named" if set(given) <= set(ids) else e.hypothesis
    if all(same(e, site) for site in e.sites if sites is None or site in sites):
        return "equivalent"
    alike = {frozenset((id_, other)) for other in given} & set(EQUIVALENT)
    return "equivalent" if alike or id_ in {t.hypothesis for t in e.equals} else e.hypothesis


def _rank(name: str) -> int:
    return {"named": 0, "equivalent": 1, "described": 3}.get(name, 2)
