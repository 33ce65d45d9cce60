"""The dumps of the bench of trust: a recipe made into a trace, and what is true of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from trust_draws import Recipe

from builders.held_weights import file_of_held
from builders.known_faults import Array, size_of
from builders.relaid import (
    AXES,
    ROTATED,
    SCORES,
    Change,
    fused,
    half_split,
    last_row,
    on_disk,
    padded_rows,
    relaid,
    scored,
    without_first_step,
)
from builders.right_engines import Run, by_c, by_llama_cpp, by_reference, by_transformers, steps_of
from builders.tiny_models import tiny
from firstdiff.dumps import Site, Step, Trace
from firstdiff.hypotheses.planting import Planted
from firstdiff.model.engine import Model, open_model
from firstdiff.verdict import SiteVerdict

MODELS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "llama Q4_K_M": ("llama", "Q4_K_M", {}),
    "llama Q8_0": ("llama", "Q8_0", {"optional": r"rope_freqs.weight|(attn|ffn)_\w+.bias"}),
    "llama F32": ("llama", "F32", {"n_head_kv": 8}),
    "qwen2 Q4_K_M": ("qwen2", "Q4_K_M", {}),
    "qwen3 Q8_0": ("qwen3", "Q8_0", {}),
}
PROMPTS = {"1": (1,), "7": (7,), "40": (40,), "24 + 16": (24, 16)}
DECODED = 3
BUFFER = 40
"""Rows of a padded buffer: of a step of one token four, as in a kernel that works on four."""

FUSED = {"wqkv": ("Qcur", "Kcur", "Vcur"), "ffn_gate_up": ("ffn_gate", "ffn_up")}


@dataclass(frozen=True)
class Garden:
    """The models, in a folder: each with a twin in F32."""

    folder: Path

    def plant(self) -> None:
        """Make all of them."""
        for name, (arch, file_type, options) in MODELS.items():
            place = self.folder / name
            place.mkdir()
            for kind in {file_type, "F32"}:
                tiny(arch, place, file_type=kind, **options)

    def path(self, name: str) -> Path:
        arch, file_type, _ = MODELS[name]
        return self.folder / name / f"{arch}-{file_type}.gguf"

    def twin(self, name: str) -> Path:
        return self.folder / name / f"{MODELS[name][0]}-F32.gguf"


@cache
def opened(path: Path) -> Model:
    """A model, opened once a process."""
    return open_model(path)


@lru_cache(maxsize=64)
def _held(garden: Garden, name: str, kind: str) -> Path:
    """A file of the weights as they are held, made once a process."""
    out = garden.folder / str(os.getpid()) / f"{name}, {kind}.gguf"
    out.parent.mkdir(exist_ok=True)
    return out if out.exists() else file_of_held(garden.path(name), garden.twin(name), kind, out)


def steps_for(recipe: Recipe, model: Model, *, decode: int) -> tuple[Step, ...]:
    """The steps of a dump."""
    return steps_of((*PROMPTS[recipe["prompt"]], *[1] * decode), n_vocab=model.hp.n_vocab)


@lru_cache(maxsize=8)
def _recorded(garden: Garden, name: str, engine: str, held: str, compute: str, prompt: str, halves: bool) -> Trace:  # noqa: FBT001
    """A right engine's run with all its decoded steps."""
    path = garden.path(name)
    model = opened(path)
    steps = steps_for({"prompt": prompt}, model, decode=DECODED)
    if engine == "reference":
        return by_reference(model, steps, held=held, compute=compute, halves=halves).trace
    path = path if held == "f32" and engine == "llama.cpp" else _held(garden, name, held)
    with tempfile.TemporaryDirectory() as out:
        match engine:
            case "transformers":
                trace = by_transformers(path, steps, compute=compute)
            case "C":
                trace = by_c(path, steps, garden.folder, Path(out) / "trace")
            case _:
                trace = by_llama_cpp(path, steps, Path(out) / "trace", compute=compute)
        trace = relaid(trace, lambda _, x: x)  # in memory: the folder goes
    if not halves or model.architecture != "llama":
        return trace
    return relaid(trace, lambda site, x: half_split(x) if site.point in ROTATED else x)


def recorded(garden: Garden, recipe: Recipe) -> Trace:
    """A right engine's run, heads in the dump's order; every tensor whole and plain."""
    halves = recipe["order"] == "Hugging Face"
    run = (recipe[name] for name in ("model", "engine", "held", "compute", "prompt"))
    return cut(_recorded(garden, *run, halves), len(PROMPTS[recipe["prompt"]]) + int(recipe["decode"]))


def with_fault(garden: Garden, recipe: Recipe, faults: Sequence[Planted]) -> Run:
    """The reference's run with faults, heads in the dump's order."""
    model = opened(garden.path(recipe["model"]))
    steps = steps_for(recipe, model, decode=int(recipe["decode"]))
    halves = recipe["order"] == "Hugging Face"
    return by_reference(model, steps, held=recipe["held"], compute=recipe["compute"], halves=halves, faults=faults)


def cut(trace: Trace, steps: int) -> Trace:
    """The first steps of a trace."""
    return replace(trace.without(lambda site: site.step >= steps), steps=trace.steps[:steps])


# Laid out


def laid_out(trace: Trace, recipe: Recipe, model: Model) -> Trace:
    """A run as it is dumped: reduced, in other axes, stored."""
    scale = 1 / np.sqrt(model.hp.head_dim)
    trace = _reduced(trace, recipe)
    trace = relaid(trace, scored(recipe["scores"], scale, recipe["stored"]))
    if recipe["fused"] != "apart":
        trace = fused(trace, recipe["fused"], n_head_kv=model.hp.n_head_kv)
    trace = relaid(trace, AXES[recipe["axes"]])
    said = {"arithmetic": recipe["compute"]} if recipe["stated"] == "compute" else {}
    return on_disk(trace, recipe["stored"], **said)


def _reduced(trace: Trace, recipe: Recipe) -> Trace:
    kind = recipe["reduction"]
    if kind.startswith("no step 0"):
        trace = without_first_step(trace)
    change: Change = lambda _, x: x  # noqa: E731 - one of several
    if kind.startswith("last row"):
        change = last_row
    if kind.startswith("padded rows"):
        change = _padded(trace, kind)
    return relaid(trace, lambda site, x: change(site, x) if keeps(kind, site) else None)


def keeps(reduction: str, site: Site) -> bool:
    """Whether a site is in a dump that is reduced in some way."""
    if site.point in ("k_cache", "v_cache") and reduction in ("last row", "no caches", "no caches, no scores"):
        return False
    match reduction:
        case "layer outputs":
            return site.point in ("l_out", "result_output")
        case "every third layer":
            return site.layer is None or site.layer % 3 == 0
        case "no caches, no scores":
            return site.point != "kq"
        case "no step 0, no caches":
            return site.point not in ("k_cache", "v_cache")
        case _:
            return True


def _padded(trace: Trace, kind: str) -> Change:
    rng = np.random.default_rng(0) if kind.endswith("stale") else None
    return lambda site, x: padded_rows(BUFFER if len(trace.steps[site.step].tokens) > 1 else 4, rng)(site, x)


# What is true of it


def recorded_sites(trace: Trace) -> set[Site]:
    """The sites that a dump holds, those of fused products apart."""
    return {replace(site, point=p) for site in trace.sites() for p in FUSED.get(site.point, (site.point,))}


@dataclass(frozen=True)
class Truth:
    """What faults changed in a dump, by site in execution order, and which recorded values each was made of.

    `zeros` are the sites of which every number is 0: there it is as true that the result was never written. `unseen`
    are those that were changed in rows that the dump lacks.
    """

    sizes: Mapping[Site, float]
    parents: Mapping[Site, Sequence[Site]]
    recorded: frozenset[Site]
    zeros: frozenset[Site]
    unseen: frozenset[Site]

    @classmethod
    def of(cls, run: Run, recipe: Recipe, dump: Trace) -> Truth:
        """Of a run as it was dumped: sizes are those of the rows that are there."""
        later = recipe["reduction"].startswith("no step 0")
        last = recipe["reduction"].startswith("last row")

        def shown(site: Site, x: Array) -> Array:
            return last_row(site, x) if last else x

        at = {site: replace(site, step=site.step - later) for site in run.parents if site.step >= later}
        with np.errstate(all="ignore"):
            sizes = {
                at[site]: size_of(site.point, shown(site, np.array(run.trace[site])), shown(site, right))
                for site, right in run.right.items()
                if site in at
            }
            unseen = frozenset(
                at[site]
                for site, right in run.right.items()
                if last and site in at and size_of(site.point, np.array(run.trace[site]), right)
            )
        parents = {at[site]: [at[p] for p in of if p in at] for site, of in run.parents.items() if site in at}
        zeros = frozenset(at[site] for site in run.trace if site in at and not run.trace[site].any())
        return cls(sizes, parents, frozenset(recorded_sites(dump)), zeros, unseen)

    def answers_for(self, of: SiteVerdict) -> bool:
        """Whether something was done to a site, or to one that it was made of and that was not recorded.

        Where the verdict says that the site reads rows which were not recorded, something may have been done to these
        rows of any tensor before it.
        """
        site = of.site
        seen, left = {site}, [site]
        while left:
            at = left.pop()
            if (self.sizes.get(at) and (at in self.recorded or at != site)) or (of.leans and at in self.unseen):
                return True
            new = [p for p in self.parents.get(at, ()) if (of.leans or p not in self.recorded) and p not in seen]
            seen.update(new)
            left += new
        return False


def may_be_unjudged(recipe: Recipe, site: Site) -> bool:
    """Whether what a site needs is not in the dump: keys and values of earlier tokens."""
    past = recipe["reduction"].startswith(("last row", "no step 0"))
    return past and site.point in (*SCORES, "k_cache", "v_cache", "kqv_out")
