"""Engines that multiply Q by the softmax's scale: a layout where it is done throughout, a fault where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from builders.judging import judge
from builders.models import synthetic
from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Step, Trace
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted, Planting
from firstdiff.judging.layouts import HALF, SCALED
from firstdiff.model.arithmetic import ARITHMETICS, F32, F64, Arithmetic
from firstdiff.model.attention import soft_max
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.model.value import Value
from firstdiff.reports.terminal import render
from firstdiff.verdict import Verdict

PROMPT = [1, *range(300, 340)]
LAYERS = 4
Array = npt.NDArray[np.floating]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Model]:
    folders = {dim: tmp_path_factory.mktemp(f"heads_of_{dim}") for dim in (16, 32, 128)}
    return {dim: open_model(synthetic(at, n_layer=LAYERS, head_dim=dim, biases=True)) for dim, at in folders.items()}


@dataclass
class Folding(Planting):
    """Multiplies Q by the scale at a point, or the scores; and with `twice` in the softmax too."""

    at: str = "Qcur_rope"
    layers: Sequence[int] = tuple(range(LAYERS))
    steps: Sequence[int] = range(9)
    twice: bool = False

    def value(self, call: Call) -> Value:
        if call.layer not in self.layers or call.step not in self.steps:
            return super().value(call)
        if call.op is soft_max and not self.twice:
            call = replace(call, attributes=call.attributes | {"scale": 1.0})
        value = super().value(call)
        if call.point == self.at:
            scale = self.arithmetic.dtype(self.model.hp.head_dim**-0.5)
            value = Value(self.arithmetic.keep(value.array * scale))
            self.tensors[Site(call.step, call.layer, call.point).key] = value.array
        return value


def recorded(
    model: Model, *bugs: tuple[str, int | None], arithmetic: Arithmetic = F64, decode: int = 2, **folding: object
) -> Trace:
    planted = [Planted(TABLE[bug], layer) for bug, layer in bugs]
    probe, writer = Folding(arithmetic, model, planted, **folding), MemoryWriter()  # type: ignore[arg-type]
    steps = [Step(tuple(PROMPT), tuple(range(len(PROMPT))))]
    steps += [Step((300 + n,), (len(PROMPT) + n,)) for n in range(decode)]
    for index, _ in enumerate(model.forward(steps, probe)):
        writer.step(steps[index], probe.finish())
    return writer.trace(arithmetic="f32")


def told(verdict: Verdict) -> list[tuple[str, str | None]]:
    return [(e.extent, e.hypothesis) for e in verdict.explanations]


@pytest.mark.slow
@pytest.mark.parametrize("dim", [16, 32, 128])
@pytest.mark.parametrize("arithmetic", [F64, F32])
@pytest.mark.parametrize(
    ("at", "points"),
    [("Qcur", {"Qcur", "Qcur_rope", "kq"}), ("Qcur_rope", {"Qcur_rope", "kq"}), ("kq", {"kq"})],
)
def test_a_scale_that_is_folded_in_is_a_layout(
    models: dict[int, Model], dim: int, arithmetic: Arithmetic, at: str, points: set[str]
) -> None:
    trace = recorded(models[dim], arithmetic=arithmetic, at=at)
    verdict = judge(models[dim], trace)
    assert verdict.verdict == "agrees"
    assert verdict.layouts == dict.fromkeys(points, SCALED)
    assert f"{', '.join(p for p in ('Qcur', 'Qcur_rope', 'kq') if p in points)}: {SCALED}" in render(verdict, width=200)
    after = [s for s in verdict.sites if s.point in (*points, "kq_soft_max")]
    assert max((s.local_error or 0.0) / (s.floor or 1.0) for s in after) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [("kq",), ("Qcur_rope",), ("Qcur",), ("kq", "Qcur_rope"), ("kq_soft_max", "kq")])
def test_what_is_recorded_is_enough(models: dict[int, Model], left_out: tuple[str, ...]) -> None:
    trace = recorded(models[32], at="Qcur").without(lambda site: site.point in left_out)
    verdict = judge(models[32], trace)
    assert verdict.verdict == "agrees"
    assert set(verdict.layouts) == {"Qcur", "Qcur_rope", "kq"} - set(left_out)


def test_it_goes_with_other_layouts(models: dict[int, Model]) -> None:
    trace = recorded(models[32], at="Qcur_rope")

    def relaid(site: Site, x: Array) -> Array:
        if site.point in ("Qcur", "Kcur", "Qcur_rope", "Kcur_rope", "k_cache"):
            return np.concatenate([x[..., 0::2], x[..., 1::2]], -1).transpose(1, 0, 2)[None]
        return x.transpose(1, 0, 2) if site.point == "kq" else x

    tensors = {site: relaid(site, np.array(trace[site])) for site in trace.sites()}
    verdict = judge(models[32], Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={}))
    assert verdict.verdict == "agrees"
    assert verdict.layouts["Qcur_rope"] == f"[head, token, head_dim], {HALF}, {SCALED}"
    assert verdict.layouts["kq"] == f"[query, head, key], {SCALED}"


def test_a_stated_layout_may_be_scaled(models: dict[int, Model]) -> None:
    trace = recorded(models[32], at="Qcur_rope")
    tensors = {s: np.array(trace[s]) for s in trace.sites()}
    tensors = {s: x.transpose(1, 0, 2) if s.point == "Qcur_rope" else x for s, x in tensors.items()}
    layouts = {"Qcur_rope": ("head", "token", "head_dim")}
    turned = Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={}, layouts=layouts)
    verdict = judge(models[32], turned)
    assert verdict.verdict == "agrees"
    assert verdict.layouts["Qcur_rope"] == f"[head, token, head_dim], {SCALED}"


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "layer"), [("rope-base", 2), ("gqa-map", 1), ("norm-weight-missing", 0)])
def test_a_fault_beside_it_is_named(models: dict[int, Model], bug: str, layer: int) -> None:
    verdict = judge(models[32], recorded(models[32], (bug, layer), at="Qcur_rope"))
    assert set(verdict.layouts) == {"Qcur_rope", "kq"}
    assert {e.hypothesis for e in verdict.explanations} == {bug}


@pytest.mark.slow
@pytest.mark.parametrize("at", ["Qcur", "Qcur_rope"])
def test_a_softmax_that_scales_once_more_is_named(models: dict[int, Model], at: str) -> None:
    verdict = judge(models[32], recorded(models[32], at=at, twice=True))
    assert "Qcur_rope" in verdict.layouts
    (explanation,) = verdict.explanations
    assert explanation.hypothesis == "scale-wrong"
    assert explanation.attributes == {"scale": 1 / 32}
    assert explanation.extent == "kq_soft_max at every layer"


@pytest.mark.slow
def test_an_engine_without_the_scale_lacks_it(models: dict[int, Model]) -> None:
    verdict = judge(models[32], recorded(models[32], ("scale-missing", None), layers=()))
    assert verdict.layouts == {}
    assert told(verdict) == [("kq_soft_max at every layer", "scale-missing")]


@pytest.mark.slow
@pytest.mark.parametrize("layers", [(1,), (0, 1, 3)])
def test_some_layers_alone_are_a_fault(models: dict[int, Model], layers: tuple[int, ...]) -> None:
    verdict = judge(models[32], recorded(models[32], layers=layers))
    assert verdict.layouts == {}
    assert {s.layer for s in verdict.diverging if s.point == "Qcur_rope"} == set(layers)


@pytest.mark.slow
def test_some_steps_alone_are_a_fault(models: dict[int, Model]) -> None:
    verdict = judge(models[32], recorded(models[32], steps=(0, 1)))
    assert verdict.layouts == {}
    assert {s.step for s in verdict.diverging if s.point == "Qcur_rope"} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("at", ["Qcur", "Qcur_rope"])
def test_scores_of_a_scaled_q_are_scaled_too(models: dict[int, Model], at: str) -> None:
    trace, plain = recorded(models[32], at=at), recorded(models[32], layers=())
    tensors = {s: np.array((plain if s.point == "kq" else trace)[s]) for s in trace.sites()}
    verdict = judge(models[32], Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={}))
    assert verdict.layouts == {}
    assert {s.point for s in verdict.diverging} == {at, "kq"}


@pytest.mark.slow
def test_a_rotation_of_a_scaled_q_is_scaled_too(models: dict[int, Model]) -> None:
    trace, plain = recorded(models[32], at="Qcur"), recorded(models[32], layers=())
    tensors = {s: np.array((trace if s.point == "Qcur" else plain)[s]) for s in trace.sites()}
    verdict = judge(models[32], Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={}))
    assert verdict.layouts == {}
    assert {s.point for s in verdict.diverging} == {"Qcur", "Qcur_rope"}


@pytest.mark.parametrize("magnitude", [1.2, 32**-0.5])
def test_a_factor_on_q_and_k_is_no_scale(models: dict[int, Model], magnitude: float) -> None:
    probe = Folding(F64, models[32], [Planted(TABLE["rope-yarn-magnitude"], None, {"magnitude": magnitude})], layers=())
    writer, step = MemoryWriter(), Step(tuple(PROMPT), tuple(range(len(PROMPT))))
    for _ in models[32].forward([step], probe):
        writer.step(step, probe.finish())
    verdict = judge(models[32], writer.trace(arithmetic="f32"))
    assert verdict.layouts == {}
    assert told(verdict) == [("Qcur_rope and Kcur_rope at every layer", "rope-yarn-magnitude")]


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("dim", [16, 32, 128])
@pytest.mark.parametrize("name", ["f16", "bf16", "f16-operands", "bf16-operands", "tf32", "ggml-cpu"])
@pytest.mark.parametrize("left_out", [(), ("kq",)])
def test_engines_that_round_fold_it_too(
    models: dict[int, Model], dim: int, name: str, left_out: tuple[str, ...]
) -> None:
    """What enters their products is the scaled Q, rounded: with heads of 32 or 128 other numbers than Q, rounded."""
    trace = recorded(models[dim], arithmetic=ARITHMETICS[name], at="Qcur_rope")
    trace = replace(trace, engine={"name": "folding"}).without(lambda site: site.point in left_out)
    verdict = judge(models[dim], trace)
    assert verdict.verdict == "agrees"
    assert set(verdict.layouts) == {"Qcur_rope", "kq"} - set(left_out)


@pytest.mark.slow
def test_a_fault_of_scores_is_named_in_narrow_operands_too(models: dict[int, Model]) -> None:
    trace = recorded(models[128], ("gqa-map", 1), arithmetic=ARITHMETICS["f16-operands"], at="Qcur_rope")
    verdict = judge(models[128], replace(trace, engine={"name": "folding"}))
    assert {e.hypothesis for e in verdict.explanations} == {"gqa-map"}
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees
