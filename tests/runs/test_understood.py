"""One site's question: the same answer as after judging everything, from a handful of calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

import firstdiff.torch
from builders.engines import recorded_by_llama_cpp
from builders.hugging_face import hugging_face_model
from builders.hypotheses import plant
from builders.judging import UNKNOWN, dump
from builders.models import FILE_TYPES, quantised, synthetic
from builders.relaid import LAYOUTS, relaid
from firstdiff.dumps import Site, Trace
from firstdiff.errors import UsageError
from firstdiff.judging.replay import Replay
from firstdiff.model.arithmetic import F32, Array, arithmetic_named
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.runs import representatives
from firstdiff.runs.pair import local
from firstdiff.runs.replaying import replayed, understood
from firstdiff.verdict import Status

torch = pytest.importorskip("torch")

PROMPT = [1, *range(300, 311)]
LAYERS = 7
CALLS = 19
"""Calls of a layer of a llama."""

ASKED = (
    Site(0, 0, "attn_norm"), Site(0, 5, "Qcur"), Site(0, 4, "Kcur_rope"), Site(1, 4, "k_cache"), Site(1, 5, "kq"),
    Site(0, 4, "kq_soft_max"), Site(0, 2, "ffn_swiglu"), Site(1, 6, "ffn_out"), Site(0, None, "result_norm"),
    Site(1, None, "result_output"),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("deep")
    path = synthetic(folder, n_layer=LAYERS)
    return open_model(quantised(path, FILE_TYPES["Q4_1"], folder / "q4_1.gguf"))


def llama_cpp(model: Model, folder: Path) -> Trace:
    return recorded_by_llama_cpp(model.gguf.path, folder / "llama", PROMPT, decode=1)[0]


def unstated(trace: Trace) -> Trace:
    return replace(trace, engine={"name": "unknown"})


def transformers(model: Model, dtype: object) -> Trace:
    return firstdiff.torch.record(hugging_face_model(model.gguf.path, dtype), PROMPT, decode=1)  # type: ignore[arg-type]


def stored(trace: Trace, dtype: type[np.floating]) -> Trace:
    return relaid(trace, lambda _, x: x.astype(dtype))


def lacking(*points: str) -> Callable[[Trace], Trace]:
    return lambda trace: trace.without(lambda site: site.point in points)


def planted(model: Model, *bugs: tuple[str, int | None]) -> Trace:
    return plant(model, PROMPT, *bugs, arithmetic=F32)[0]


Made = Callable[[Model, Path], Trace]

DUMPS: dict[str, Made] = {
    "llama.cpp, nothing stated": lambda m, f: unstated(llama_cpp(m, f)),
    "llama.cpp without attention's inside": lambda m, f: lacking("kq", "kq_soft_max", "k_cache")(llama_cpp(m, f)),
    "a fault at one layer": lambda m, _: planted(m, ("rope-base", 4)),
    "a fault at every layer": lambda m, _: planted(m, ("rope-base", None)),
    "a wrong norm at every layer": lambda m, _: unstated(planted(m, ("norm-weight-missing", None))),
    "transformers in bfloat16, nothing stated": lambda m, _: unstated(transformers(m, torch.bfloat16)),
    "transformers in float16": lambda m, _: transformers(m, torch.float16),
    "ggml's order and a fault": lambda m, _: relaid(planted(m, ("gqa-map", 4)), LAYOUTS["ggml's axis order"]),
    "scaled scores": lambda m, _: relaid(planted(m), LAYOUTS["scaled scores"]),
    "last logits only": lambda m, _: relaid(planted(m), LAYOUTS["last logits only"]),
    "stored in f16": lambda m, _: stored(planted(m, ("rope-base", 4)), np.float16),
    "without norms": lambda m, _: lacking("attn_norm", "ffn_norm")(planted(m, ("rope-base", 4))),
    "without sums": lambda m, _: lacking("l_out", "ffn_inp", "embd")(planted(m, ("rope-base", 4))),
    "three points": lambda m, _: planted(m).without(lambda s: s.point not in ("Qcur", "ffn_swiglu", "l_out")),
    "weights held in f16": lambda m, _: dump(m, PROMPT, arithmetic=arithmetic_named("f32+held=f16")),
    "fp8 and a fault": lambda m, _: dump(
        m, PROMPT, ("rope-base", 4), arithmetic=arithmetic_named("f32+matrices=f8_e4m3-row+norms=bf16")
    ),
    "another kernel for one token": lambda m, _: dump(
        m, PROMPT, kernels=lambda tokens: arithmetic_named("f32" if tokens == 1 else "bf16-operands")
    ),
    "an unknown arithmetic": lambda m, _: dump(m, PROMPT, after=UNKNOWN["noise of 3e-3 on products"][1]),
}


@dataclass
class Kept:
    """Both tensors of every judged site."""

    tensors: dict[Site, tuple[Array, Array]] = field(default_factory=dict)

    def take(self, site: Site, _status: Status, candidate: Array, reference: Array, **_: object) -> None:
        self.tensors[site] = candidate, reference


@pytest.mark.slow
@pytest.mark.parametrize("name", DUMPS)
def test_what_is_found_and_measured_is_what_judging_everything_gives(model: Model, tmp_path: Path, name: str) -> None:
    trace = DUMPS[name](model, tmp_path)
    done = replayed(model, trace)
    whole, alignment = done.found, done.alignment
    found, layouts = understood(model, trace, logits=True)
    assert found.arithmetic == whole.arithmetic
    assert found.levels == whole.levels
    assert layouts.described() == alignment.described()
    kept = Kept()
    assert found.stated == whole.stated
    probe = Replay(whole.arithmetic, trace, alignment, whole.levels, kept, whole)
    for _ in model.forward(trace.steps, probe):
        pass
    floors = {s.site: s.floor for s in probe.sites}
    asked = [site for site in ASKED if site in kept.tensors]
    assert asked
    for site in asked:
        pair = local(model, trace, site)
        rows = len(pair.candidate)
        for ours, judged in zip((pair.candidate, pair.other), kept.tensors[site], strict=True):
            np.testing.assert_allclose(ours, judged[-rows:], rtol=1e-6, atol=1e-7 * np.abs(judged[-rows:]).max())
        assert pair.floor == pytest.approx(floors[site], rel=1e-6)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call that is computed from now on."""
    calls: list[Call] = []
    compute = Call.compute

    def counting(self: Call, *args: object) -> Array:
        calls.append(self)
        return compute(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Call, "compute", counting)
    return calls


def places(calls: Sequence[Call]) -> set[tuple[int, int | None, str]]:
    """Where calls stand; looking up the embedding, which tells its shape, does not count."""
    return {(c.step, c.layer, c.point) for c in calls if c.point != "embd"}


def test_only_the_call_of_a_recorded_site_is_computed(model: Model, computed: list[Call]) -> None:
    trace = planted(model, ("rope-base", 4))
    local(model, trace, Site(0, 4, "Kcur_rope"))
    for site in (Site(0, 4, "Kcur_rope"), Site(1, 6, "ffn_out"), Site(1, 3, "k_cache")):
        computed.clear()
        local(model, trace, site)
        assert places(computed) == {(site.step, site.layer, site.point)}


def test_of_what_is_not_recorded_only_the_calls_since_recorded_values_are_computed(
    model: Model, computed: list[Call]
) -> None:
    trace = lacking("attn_norm", "Kcur", "k_cache")(planted(model))
    local(model, trace, Site(1, 5, "kq"))
    computed.clear()
    local(model, trace, Site(1, 5, "Kcur_rope"))
    assert places(computed) == {(1, 5, p) for p in ("attn_norm", "Kcur", "Kcur_rope")}
    computed.clear()
    local(model, trace, Site(1, 5, "kq"))
    assert places(computed) == {(0, 5, "k_cache"), (1, 5, "k_cache"), (1, 5, "kq")}


QUICK = ("llama.cpp, nothing stated", "a fault at every layer", "transformers in bfloat16, nothing stated")


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_a_handful_of_layers_is_computed_for_the_first_question(
    model: Model, tmp_path: Path, computed: list[Call], name: str
) -> None:
    trace = DUMPS[name](model, tmp_path)
    computed.clear()
    local(model, trace, Site(0, 2, "Kcur_rope"))
    inside = [place for place in places(computed) if place[1] is not None]
    assert len({layer for _, layer, _ in inside}) == representatives.LAYERS + 1  # and the site's own
    assert len([place for place in inside if place[0] == 0]) <= representatives.LAYERS * CALLS + 1
    assert {step for step, _, _ in inside} == {0, 1}  # of each number of tokens one step
    assert len([place for place in inside if place[0] == 1]) <= representatives.LAYERS * CALLS + 1


def test_what_is_not_comparable_is_said_with_its_reason(model: Model) -> None:
    trace = planted(model)
    normed = {
        s: trace[Site(s.step, None, "result_norm")] if (s.point, s.layer) == ("l_out", LAYERS - 1) else trace[s]
        for s in trace
    }
    named = Trace.from_arrays(trace.steps, normed, engine=trace.engine, model={})
    with pytest.raises(UsageError, match="it holds the value after the final norm"):
        local(model, named, Site(0, LAYERS - 1, "l_out"))
    odd = relaid(trace, lambda s, x: x[:, :3] if s == Site(0, 5, "Qcur") else x)
    with pytest.raises(UsageError, match="recorded shape"):
        local(model, odd, Site(0, 5, "Qcur"))
