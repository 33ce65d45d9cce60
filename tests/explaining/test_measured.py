"""What is measured where no hypothesis explains: each statement is planted, found, and right on another prompt."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from builders.every_architecture import toy
from builders.judging import going_on_with, judge
from builders.known_faults import Plant, plant_known
from builders.models import in_blocks
from builders.other_prompt import OnAnotherPrompt, gives_the_same, ran
from builders.random_faults import Drawn, draw
from firstdiff.dumps import Site, Step, Trace
from firstdiff.engines.opening import open_reference
from firstdiff.explaining.budget import OutOfTime
from firstdiff.explaining.measured.statements import MEASURED
from firstdiff.hypotheses import TABLE, Hypothesis, Scene
from firstdiff.hypotheses.planting import Planted, Planting
from firstdiff.hypotheses.where import Where
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.reports.explanations import drawing, explained, in_full
from firstdiff.reports.html import render as page
from firstdiff.verdict import Explanation, Series, Verdict
from firstdiff.verdict.reading import read_verdict
from firstdiff.verdict.writing import to_json

TOKENS = tuple(random.Random(1).sample(range(60, 300), 24))
OTHER = tuple(random.Random(2).sample(range(60, 300), 24))
LAYER = 3

Floats = npt.NDArray[Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A synthetic llama whose projections have biases: 4 heads read 2 heads of keys."""
    return open_model(in_blocks("Q8_0", tmp_path_factory.mktemp("model"), n_layer=6, biases=True))


@pytest.fixture(scope="module")
def mixture(llama: None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_reference(toy("qwen3moe", tmp_path_factory.mktemp("mixture")), tier="graph")


def planted(model: Model, hypothesis: Hypothesis, layer: int | None = LAYER) -> Plant:
    made = plant_known(model, TOKENS, [Planted(hypothesis, layer)], "here", decode=1)
    assert made is not None, "it changes nothing"
    return made


def fault(point: str, make: Callable[[Call, Scene], Call | None], *, rounds: bool = False) -> Hypothesis:
    """A fault that no table has."""

    def change(call: Call, scene: Scene, _values: object) -> Call | None:
        return make(call, scene) if call.point == point else None

    return Hypothesis("planted", Where(None), "planted", "", change, rounds=rounds)


def first(verdict: Verdict) -> Explanation:
    assert verdict.first is not None
    return next(e for e in verdict.explanations if verdict.first.site in e.sites)


def operand(name: str, change: Callable[[Floats], Floats]) -> Callable[[Call, Scene], Call]:
    return lambda call, _: call.with_arguments(**{name: change(np.array(call.argument(name)))})


def weight(change: Callable[[Floats], Floats]) -> Callable[[Call, Scene], Call]:
    def make(call: Call, _scene: Scene) -> Call:
        of = call.argument("weight")
        return call.with_arguments(weight=replace(of, dense=change(np.array(of.values()))))

    return make


def put(at: Any, new: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    def change(x: Floats) -> Floats:
        y = np.array(x)
        y[..., at] = new(x)
        return y

    return change


STATED: dict[str, tuple[str, Callable[[Call, Scene], Call | None], dict[str, Any]]] = {
    "measured-terms": (
        "ffn_gate",
        weight(put(slice(160, 224), lambda w: 0 * w[..., 160:224])),
        {"input": "160-223", "by": 0.0, "among": 256},
    ),
    "measured-operand-taken": (
        "ffn_out",
        operand("x", put(slice(64, 128), lambda x: x[..., 66:130])),
        {"of": "x", "moves": [["64-127", 2]]},
    ),
    "measured-raised": ("attn_norm", weight(put(slice(32, 64), lambda w: w[32:64] + 0.5)), {"of": "weight", "by": 0.5}),
    "measured-taken": (
        "ffn_norm",
        weight(lambda w: np.concatenate([w[16:32], w[:16], w[32:]])),
        {"moves": [["0-15", 16], ["16-31", -16]]},
    ),
    "measured-replaced": (
        "ffn_inp",
        lambda call, _: call.with_arguments(b=put(slice(8), lambda _: call.argument("a")[..., :8])(call.argument("b"))),
        {"other": "a", "feature": "0-7"},
    ),
    "measured-positions": (
        "Qcur_rope",
        lambda call, _: (
            call.with_arguments(positions=(*range(4), *range(9, 15), *range(10, 24)))
            if len(call.argument("positions")) == len(TOKENS)
            else None
        ),
        {"token": "4-9", "by": 5},
    ),
    "measured-keys": (
        "kq_soft_max",
        lambda call, _: call.with_arguments(
            kq=put(slice(5, 9), lambda k: k[..., 5:9] + 0.5 / call.argument("scale"))(call.argument("kq"))
        ),
        {"key": "5-8", "by": 0.5},
    ),
    "measured-mask": (
        "kq_soft_max",
        lambda call, _: call.with_arguments(mask=chunked(call, 7)),
        {"mask": "chunk", "size": 7},
    ),
    "measured-scaled": (
        "ffn_swiglu",
        operand("gate", put(slice(100, 140), lambda g: 1.5 * g[..., 100:140])),
        {"of": "gate", "feature": "100-139", "by": 1.5},
    ),
}


def chunked(call: Call, size: int) -> Floats:
    queries, keys = call.argument("kq").shape[-2:]
    own, key = np.arange(keys - queries, keys)[:, None], np.arange(keys)[None]
    return np.where((key <= own) & (key // size == own // size), np.float32(0), np.float32(-np.inf))


@pytest.mark.parametrize("id_", STATED)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_what_is_planted_is_measured(model: Model, id_: str, dtype: str) -> None:
    point, make, attributes = STATED[id_]
    verdict = judge(model, planted(model, fault(point, make)).trace(dtype))
    assert str(verdict.first and verdict.first.site) == f"{point}-{LAYER}"
    e = first(verdict)
    assert e.hypothesis == id_, e
    for name, value in attributes.items():
        assert e.attributes[name] == (pytest.approx(value) if isinstance(value, float) else value)
    assert e.measured is not None
    assert gives_the_same(model, e, make, e.site, ran(model, OTHER))


WITHOUT_THE_TABLE = {
    "norm-eps-wide": "measured-eps",
    "rope-base": "measured-turns",
    "rope-pairing": "measured-turns",
    "weight-of-other-layer": "measured-vector",  # the norm's is the first to go wrong
    "weight-row-offset": "measured-rows",
    "weight-transposed": "measured-rows",
    "activation-wrong": "measured-activation",
    "gate-up-swapped": "measured-activation",
    "wrong-input": "measured-operand",
    "norm-weight-twice": "measured-vector",
    "norm-root-missing": "measured-row-scale",
    "norm-of-all-tokens": "measured-row-scale",
    "softmax-unnormalised": "measured-sums",
    "norm-layernorm": "measured-centred",
    "token-offset": "measured-ids",
    "gqa-map": "measured-heads",
}


@pytest.mark.parametrize("id_", WITHOUT_THE_TABLE)
def test_a_fault_of_the_table_is_measured_without_it(model: Model, id_: str) -> None:
    if id_ == "norm-eps-wide":
        hypothesis = fault("attn_norm", lambda call, _: call.with_arguments(eps=0.01))
    else:
        hypothesis = TABLE[id_]
    layer = None if hypothesis.outside_layers else LAYER
    e = first(judge(model, planted(model, hypothesis, layer).trace("f32"), table={}))
    assert e.hypothesis == WITHOUT_THE_TABLE[id_]
    assert OnAnotherPrompt(model, TOKENS, hypothesis)(e, e.site)


@pytest.mark.parametrize(
    ("bend", "attributes"),
    [
        (lambda y: np.clip(y, -0.5, 0.75), {"curve": "clip", "low": -0.5, "high": 0.75}),
        (lambda y: 1.5 * np.tanh(y / 1.5), {"curve": "cap", "at": 1.5}),
        (lambda y: np.sign(y) * np.abs(y) ** 0.9, {"curve": "power", "exponent": 0.9}),
        (lambda y: np.where(y < 0, 0.25 * y, y), {"curve": "pieces", "slopes": [0.25, 1.0]}),
        (lambda y: np.round(y * 8) / 8, {"curve": "steps", "step": 0.125}),
    ],
)
def test_a_curve_is_told_with_its_parameters(model: Model, bend: Any, attributes: dict[str, Any]) -> None:
    e = first(judge(model, going_on_with(model, list(TOKENS), ffn_up_3=bend)))
    assert e.hypothesis == "measured-curve"
    told = {name: e.attributes[name] for name in attributes}
    assert told.pop("curve") == attributes["curve"]
    assert told == {name: pytest.approx(x, rel=1e-3) for name, x in attributes.items() if name != "curve"}


def test_an_order_that_follows_a_rule_is_told(model: Model) -> None:
    def reversed_(y: Floats) -> Floats:
        return y.reshape(len(y), -1, 32)[..., ::-1].reshape(y.shape)

    e = first(judge(model, going_on_with(model, list(TOKENS), ffn_up_3=reversed_)))
    assert (e.hypothesis, e.attributes["order"]) == ("measured-order", "in reverse order within each 32")


def test_an_operand_that_is_rounded_is_told(model: Model) -> None:
    def rows(x: Floats) -> Floats:
        scale = np.abs(x).max(-1, keepdims=True) / 127
        return (np.round(x / scale) * scale).astype(x.dtype)

    e = first(judge(model, planted(model, fault("Vcur", operand("x", rows), rounds=True)).trace("f32")))
    assert (e.hypothesis, e.attributes) == ("measured-rounded", {"of": "x", "to": "i8-row", "named": "attn_norm"})
    assert e.says == "the operand x (attn_norm) is rounded to int8 with one scale for each row"


def test_scores_that_go_with_the_distance_are_told(model: Model) -> None:
    def sloped(y: Floats) -> Floats:
        t, s = y.shape[-2:]
        return y - 0.125 * np.maximum(np.arange(s - t, s)[:, None] - np.arange(s)[None], 0)

    e = first(judge(model, going_on_with(model, list(TOKENS), kq_3=sloped)))
    assert (e.hypothesis, e.attributes) == ("measured-sloped", {"slopes": [-0.125], "unit": "scores"})


@pytest.mark.llama
@pytest.mark.parametrize("point", ["ffn_moe_weighted", "ffn_moe_out", "ffn_down_exps"])
def test_an_expert_that_does_not_count_is_told(mixture: Model, point: str) -> None:
    def make(call: Call, scene: Scene) -> Call | None:
        return MEASURED["measured-experts"].change(call, scene, {"expert": "3", "by": 0.0})

    tokens = random.Random(1).sample(range(3, 128), 24)
    made = plant_known(mixture, tokens, [Planted(fault(point, make), 1)], "here", decode=1)
    assert made is not None
    e = first(judge(mixture, made.trace("f32")))
    assert e.hypothesis == "measured-experts"
    assert e.says == "the output of expert 3 is missing"


def test_a_condition_that_all_faulty_products_share_is_told_first(model: Model) -> None:
    def drop(call: Call, scene: Scene) -> Call | None:
        return weight(put(slice(256, 512), lambda w: 0 * w[..., 256:512]))(call, scene)

    hypothesis = fault("ffn_out", drop)
    verdict = judge(model, plant_known(model, TOKENS, [Planted(hypothesis, None)], "all", decode=1).trace("f32"))  # type: ignore[union-attr]
    e = first(verdict)
    assert e.when == "only in products over 512 inputs, and not in those over 256"
    assert explained(e).startswith("ffn_out at every layer, only in products over 512 inputs")


def test_the_evidence_is_drawn_and_survives_the_file(model: Model, tmp_path: Path) -> None:
    point, make, _ = STATED["measured-terms"]
    verdict = judge(model, planted(model, fault(point, make)).trace("f32"))
    e = first(verdict)
    assert e.measured is not None
    assert e.measured.numbers == len(TOKENS) * 512
    assert e.measured.series is not None
    lines = drawing(e.measured.series)
    assert lines[0] == "The weight of each input in the sum, for each input:"
    assert lines[1].split()[:2] == ["0-159", "1"]
    assert lines[2].split()[:2] == ["160-223", "0"]
    assert "(right: 1)" in lines[2]
    assert lines[0] in in_full(e)
    assert "The weight of each input in the sum" in page(verdict)
    file = tmp_path / "verdict.json"
    file.write_text(to_json(verdict), encoding="utf-8")
    assert read_verdict(file).explanations == verdict.explanations


def test_a_drawing_joins_neighbours_and_has_an_end() -> None:
    series = Series("x", "place", tuple(map(str, range(60))), (1.0,) * 30 + tuple(map(float, range(30))), (1.0,) * 60)
    lines = drawing(series)
    assert lines[1].split()[0] == "0-29"
    assert lines[-1] == f"  … and {31 - 24} more"


def test_what_cannot_be_measured_costs_no_verdict(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise ValueError("no such numbers")

    monkeypatch.setattr("firstdiff.explaining.measured.measuring.counted_terms", failing)
    rng = np.random.default_rng(0)
    verdict = judge(model, going_on_with(model, list(TOKENS), ffn_up_3=lambda y: y * rng.uniform(0.5, 2, y.shape)))
    assert first(verdict).hypothesis is None
    assert [(f.hypothesis, str(f.site)) for f in verdict.failed] == [("measuring", "ffn_up-3")]


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(60))
def test_random_faults_are_told_or_described_and_never_wrongly(model: Model, seed: int) -> None:
    right = ran(model, TOKENS)
    calls = [(call, right.tensors[s].shape) for s, call in right.calls.items() if s.step == 0 and s.layer is not None]
    drawn: Drawn = next(draw(random.Random(seed), calls))
    made = plant_known(model, TOKENS, [Planted(drawn.hypothesis, drawn.layer)], "random", decode=1)
    if made is None or made.beyond("f32") or max(made.changes.values()) < 1e-4:
        pytest.skip("it changes nothing that is seen")
    verdict = judge(model, made.trace("f32"))
    assert verdict.first is not None
    assert verdict.first.site in made.changes
    e = first(verdict)
    site = Site(0, e.site.layer, e.site.point)
    if e.hypothesis is not None and site in e.sites:
        assert gives_the_same(model, e, drawn.make, site, ran(model, OTHER)) is not False


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda tokens: tokens == 1, "in steps of one token"),
        (lambda tokens: tokens > 1, "in steps of several tokens"),
        (lambda tokens: tokens > 4, "only in steps of 8 tokens or more: one of 4 is right"),
        (lambda tokens: tokens <= 4, "only in steps of at most 4 tokens"),
    ],
)
def test_the_steps_in_which_a_fault_shows_are_told_by_their_tokens(
    model: Model, wrong: Callable[[int], bool], told: str
) -> None:
    lengths, start, steps = (8, 4, 1, 12, 1), 0, []
    for length in lengths:
        steps.append(Step(TOKENS[:length], tuple(range(start, start + length))))
        start += length

    def make(call: Call, _scene: Scene) -> Call | None:
        x = call.argument("x")
        return call.with_arguments(x=put(slice(0, 32), lambda x: 2 * x[..., :32])(x)) if wrong(len(x)) else None

    probe, tensors = Planting(F32, model, [Planted(fault("ffn_out", make))]), {}
    for index, _ in enumerate(model.forward(steps, probe)):
        tensors |= {Site.of_key(key, index): x for key, x in probe.finish().items()}
    verdict = judge(model, Trace.from_arrays(steps, tensors, engine={"name": "mine", "arithmetic": "f32"}, model={}))
    e = first(verdict)
    assert e.hypothesis == "measured-terms"
    assert told in f"{e.extent}, {e.when}"


ANYWHERE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("measured-terms", {"of": "x", "input": "32-63", "by": 0.0}),
    ("measured-terms", {"of": "p", "key": "2", "head": "1", "by": 2.0}),
    ("measured-terms", {"of": "q", "dimension": "0-3", "by": 2.0}),
    ("measured-operand-taken", {"of": "x", "axis": "input", "moves": [["0-7 of each 16", 2]]}),
    ("measured-scaled", {"of": "result", "token": "3", "feature": "700-800", "by": 0.0}),
    ("measured-scaled", {"of": "kq", "head": "3", "by": 2.0}),
    ("measured-raised", {"of": "weight", "feature": "0-3", "by": 1.0}),
    ("measured-taken", {"of": "b", "axis": "feature", "moves": [["0-7", 8]]}),
    ("measured-taken", {"of": "result", "axis": "token", "moves": [["20-22", 1]]}),
    ("measured-replaced", {"of": "result", "feature": "0-7", "other": "ffn_up", "from": ""}),
    ("measured-mean", {"feature": "300-310", "by": 0.0}),
    ("measured-eps", {"eps": 1e-3}),
    ("measured-vector", {"vector": "blk.0.ffn_norm.weight"}),
    ("measured-row-scale", {"mean": "all"}),
    ("measured-centred", {"mean": "subtracted"}),
    ("measured-positions", {"token": "20-30", "by": 3}),
    ("measured-turns", {"pairing": "half", "turns": [0.5] * 16, "as": "oddly"}),
    ("measured-sloped", {"slopes": [0.1] * 5, "unit": "scores"}),
    ("measured-sums", {"rows": "as they are"}),
    ("measured-keys", {"key": "40", "by": 1.0}),
    ("measured-mask", {"mask": "window", "size": 3}),
    ("measured-heads", {"of": "keys", "reads": [0, 1, 2, 9]}),
    ("measured-rows", {"matrix": "blk.0.attn_q.weight", "how": " turned", "moves": [["0-9", 5]]}),
    ("measured-ids", {"ids": -10_000}),
    ("measured-activation", {"of": "gate", "function": "relu", "times": True}),
    ("measured-order", {"order": "odd", "features": [1, 0]}),
    ("measured-curve", {"curve": "steps", "step": 0.5}),
    ("measured-rounded", {"of": "x", "to": "i8-128"}),
    ("measured-rounded", {"of": "keys", "to": "f8_e4m3-row"}),
    ("measured-sum", {"each": 32, "kept": "f16", "order": "lanes", "of": "inputs"}),
    ("measured-sum", {"each": 8, "kept": "bf16", "order": "apart", "of": "keys"}),
    ("measured-sum", {"each": 1, "kept": "f16", "order": "backwards", "of": "dimensions"}),
    ("measured-operand", {"of": "a", "other": "Qcur", "from": " of the layer before"}),
    ("measured-experts", {"expert": "2", "by": 0.0}),
)


def test_each_statement_has_values_here() -> None:
    assert {id_ for id_, _ in ANYWHERE} == set(MEASURED)


@pytest.mark.parametrize(("id_", "values"), ANYWHERE)
def test_a_statement_of_one_call_can_be_asked_of_any_other(model: Model, id_: str, values: dict[str, Any]) -> None:
    """A fault that explains a site is held against all others: what it does not fit, it leaves alone."""
    run = ran(model, TOKENS)
    scene = Scene(model, F32, run.tensors.get, {site: call.order for site, call in run.calls.items()})
    assert MEASURED[id_].told(values)
    for site, call in run.calls.items():
        if site.layer in (LAYER, None):
            changed = MEASURED[id_].apply(call, scene, values)
            if changed is not None:
                assert changed.compute(F32).shape == run.tensors[site].shape


def test_a_large_result_is_measured_by_some_of_its_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstdiff.explaining.measured.view.MOST", 5 * 512)
    point, make, attributes = STATED["measured-terms"]
    e = first(judge(model, planted(model, fault(point, make)).trace("f32")))
    assert (e.hypothesis, e.attributes["input"]) == ("measured-terms", attributes["input"])
    assert e.measured is not None
    assert e.measured.numbers == 5 * 512


@pytest.mark.parametrize(
    ("inputs", "among", "told"),
    [
        ("512-575", 576, "inputs 512-575 of 576 (512 is the last multiple of 128 below 576)"),
        ("1472-1535", 1536, "inputs 1472-1535 of 1536"),
        ("0-63", 576, "inputs 0-63 of 576"),
    ],
)
def test_a_tail_is_told_with_the_block_that_it_is_left_over_from(inputs: str, among: int, told: str) -> None:
    values = {"of": "x", "input": inputs, "by": 0.0, "among": among}
    assert MEASURED["measured-terms"].told(values) == f"the sum leaves out {told}"


def test_what_was_measured_stands_when_the_time_is_over_in_the_pairs(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object) -> None:
        raise OutOfTime

    monkeypatch.setattr("firstdiff.explaining.search.pairs_of", late)
    e = first(judge(model, going_on_with(model, list(TOKENS), ffn_up_3=lambda y: np.clip(y, -0.5, 0.75))))
    assert e.hypothesis == "measured-curve"
