"""Explanations: of many sites, of two faults at one, of points that were not recorded, and of what is not known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.hypotheses import plant
from builders.judging import going_on_with, judge
from builders.models import synthetic
from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Step, Trace
from firstdiff.explaining.attempt import Fault
from firstdiff.explaining.telling_apart import separating
from firstdiff.hypotheses import TABLE, Scene
from firstdiff.hypotheses.catalogue import TOKENS
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.hypotheses.where import Where
from firstdiff.judging.case import Case
from firstdiff.model.arithmetic import F64
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import linear, rope
from firstdiff.model.probe import Call
from firstdiff.preflight.weight_faults import wrong_weights
from firstdiff.preflight.weight_readers import readers
from firstdiff.preflight.weights import check_weights
from firstdiff.reports.terminal import render
from firstdiff.verdict import Verdict

ROOT = Path(__file__).parents[2]
LAYERS = 6
PROMPT = [1, *range(70, 110)]


def judged(model: Model, *bugs: tuple[str, int | None], tokens: Sequence[int] = PROMPT, decode: int = 0) -> Verdict:
    trace, _ = plant(model, tokens, *bugs, decode=decode)
    return judge(model, trace)


@pytest.mark.slow
def test_the_same_fault_at_every_layer_is_one_explanation(small: Model) -> None:
    verdict = judged(small, ("rope-pairing", None), decode=1)
    (explanation,) = verdict.explanations
    assert explanation.hypothesis == "rope-pairing"
    assert explanation.extent == "Qcur_rope and Kcur_rope at every layer"
    assert len(explanation.sites) == 4 * LAYERS
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees


CUT = ("attn_out", "ffn_inp", "ffn_norm", "ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out", "l_out")
"""What llama.cpp computes of the last layer for the rows alone whose logits are asked for."""


def last_rows(trace: Trace, points: Sequence[str] = ("result_output",)) -> Trace:
    """The trace with the last token's row alone of some points of the last layer and outside the layers."""
    tensors = {s: np.array(trace[s]) for s in trace.sites()}
    for site, x in tensors.items():
        if site.point in points and site.layer in (None, LAYERS - 1):
            tensors[site] = x[-1:]
    return Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "layer", "points"),
    [
        ("logit-softcap-added", None, ("result_output",)),
        ("logit-scale", None, ("result_output",)),
        ("logits-of-wrong-row", None, ("result_output",)),
        ("logits-of-wrong-row", None, ()),
        ("final-norm-missing", None, (*CUT, "result_norm", "result_output")),
        ("bias-missing", LAYERS - 1, (*CUT, "result_norm", "result_output")),
        ("nibble-order", LAYERS - 1, (*CUT, "result_norm", "result_output")),
        ("residual-clipped", LAYERS - 1, (*CUT, "result_norm", "result_output")),
        ("gate-up-swapped", LAYERS - 1, (*CUT, "result_norm", "result_output")),
    ],
)
def test_a_fault_is_named_where_the_last_row_alone_was_recorded(
    small: Model, bug: str, layer: int | None, points: tuple[str, ...]
) -> None:
    trace, _ = plant(small, PROMPT, (bug, layer), decode=0)
    verdict = judge(small, last_rows(trace, points))
    assert {e.hypothesis for e in verdict.explanations} == {bug}
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees
    last = verdict.diverging[-1]
    assert last.where is not None
    if last.point in points:
        only = f"{len(PROMPT) - 1} (the only one recorded)"
        assert last.where["token"] == only
        assert last.worst is not None
        assert last.worst.index[0] == len(PROMPT) - 1
        assert f"token {only}" in render(verdict, width=200)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [slice(None), slice(-1, None)])
@pytest.mark.parametrize(
    ("change", "attributes"),
    [
        (lambda x: np.float32(0.37) * x, {"factor": 0.37}),
        (lambda x: 2.3 * np.tanh(x / 2.3), {"cap": 2.3}),
    ],
)
def test_a_parameter_is_fitted_to_the_rows_that_were_recorded(
    small: Model, rows: slice, change: Callable[[np.ndarray], np.ndarray], attributes: dict[str, float]
) -> None:
    trace, _ = plant(small, PROMPT, decode=0)
    logits = Site(0, None, "result_output")
    tensors = {s: np.array(trace[s]) for s in trace.sites()}
    tensors[logits] = change(tensors[logits])[rows].astype(np.float32)
    verdict = judge(small, Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={}))
    (explanation,) = verdict.explanations
    assert explanation.attributes == attributes


@pytest.mark.slow
def test_of_a_row_that_was_recorded_alone_nothing_is_said_of_the_others(small: Model) -> None:
    trace, _ = plant(small, PROMPT, decode=0)
    tensors = {s: np.array(trace[s]) for s in trace.sites()}
    logits = Site(0, None, "result_output")
    tensors[logits] = tensors[logits][-1:]
    tensors[logits][0, 40:60] = np.sort(tensors[logits][0, 40:60])[::-1]
    verdict = judge(small, Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={}))
    (explanation,) = verdict.explanations
    assert explanation.hypothesis is None
    last = len(PROMPT) - 1
    assert explanation.findings[-1] == f"only token {last} was recorded"
    assert not any(f"token {last}" in finding for finding in explanation.findings[:-1])


@pytest.mark.slow
def test_drift_is_of_the_recorded_row_alone(small: Model) -> None:
    trace, _ = plant(small, PROMPT, ("logit-scale", None), decode=0)
    logits = judge(small, last_rows(trace)).sites[-1]
    assert logits.drift == pytest.approx(0.5, rel=1e-3)


def test_faults_at_several_sites_are_each_explained(small: Model) -> None:
    verdict = judged(small, ("norm-eps", 0), ("gqa-map", 3), ("residual-clipped", 4))
    named = [e.hypothesis for e in verdict.explanations]
    assert list(dict.fromkeys(named)) == ["norm-eps", "gqa-map", "residual-clipped"]
    assert f"these {len(named)} changes" in render(verdict, width=200)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [
        ("weight-transposed", "bias-missing"),
        ("nibble-order", "bias-missing"),
        ("rope-pairing", "rope-base"),
        ("scale-missing", "softcap-added"),
        ("min-missing", "weight-reinterpreted"),
    ],
)
def test_two_faults_at_one_site_are_named_together(small: Model, pair: tuple[str, str]) -> None:
    verdict = judged(small, *((bug, 2) for bug in pair))
    first = verdict.explanations[0]
    assert first.hypothesis == " + ".join(pair)
    assert first.residual is not None
    assert first.residual <= 2e-6
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees


@pytest.mark.slow
def test_fitted_parameters_are_those_that_were_planted(small: Model) -> None:
    for bug, values in (
        ("rope-base", {"base": 31415.9}),
        ("norm-eps", {"eps": 3.3e-4}),
        ("scale-wrong", {"scale": 0.1234}),
        ("softcap-added", {"cap": 4.56}),
        ("branch-scale", {"factor": 0.77}),
        ("residual-clipped", {"bound": 1.5}),
        ("rope-scale", {"factor": 0.7}),
    ):
        writer = MemoryWriter()
        record_planted(small, PROMPT, writer, arithmetic=F64, planted=[Planted(TABLE[bug], 1, values)])
        explanation = judge(small, writer.trace(arithmetic="f32")).explanations[0]
        assert explanation.hypothesis == bug
        for name, value in values.items():
            assert explanation.attributes[name] == pytest.approx(value, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "missing"),
    [
        ("norm-weight-missing", {"attn_norm"}),
        ("rope-pairing", {"Qcur_rope", "Kcur_rope", "k_cache", "kq"}),
        ("scale-missing", {"kq_soft_max"}),
        ("gate-up-swapped", {"ffn_swiglu"}),
    ],
)
def test_a_fault_in_what_was_not_recorded_is_explained(small: Model, bug: str, missing: set[str]) -> None:
    trace, _ = plant(small, PROMPT, (bug, 2), decode=0)
    verdict = judge(small, trace.without(lambda site: site.point in missing))
    assert bug in [e.hypothesis for e in verdict.explanations]
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees


@pytest.mark.slow
def test_what_no_hypothesis_gives_is_measured(small: Model) -> None:
    trace, _ = plant(small, PROMPT, decode=0)
    wrong = np.array(trace[Site(0, 2, "ffn_gate")])
    wrong[:, 100:140] *= 1.7
    verdict = judge(small, going_on_with(small, PROMPT, ffn_gate_2=wrong))
    explanation = verdict.explanations[0]
    assert explanation.hypothesis == "measured-scaled"
    assert explanation.attributes == {"of": "result", "feature": "100-139", "by": 1.7}
    assert explanation.says == "in the result, features 100-139 are 1.7 times what is right"
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees
    assert explanation.measured is not None
    series = explanation.measured.series
    assert series is not None
    factors = dict(zip(series.places, series.measured, strict=True))
    assert {place: f for place, f in factors.items() if f != 1} == {
        place: 1.7 for place in factors if 100 <= int(place.partition("-")[0]) < 140
    }
    assert "in the result, features 100-139 are 1.7 times" in render(verdict, width=200)


@pytest.mark.slow
def test_what_nothing_gives_is_described_and_not_guessed(small: Model) -> None:
    trace, _ = plant(small, PROMPT, decode=0)
    wrong = np.array(trace[Site(0, 2, "ffn_gate")])
    wrong[:, 100:140] *= np.random.default_rng(0).uniform(0.5, 2, (len(wrong), 40))
    verdict = judge(small, going_on_with(small, PROMPT, ffn_gate_2=wrong))
    explanation = verdict.explanations[0]
    assert explanation.hypothesis is None
    assert explanation.says.startswith("not explained, because none of ")
    assert any("100-139" in finding for finding in explanation.findings)
    assert verdict.counter_check is None
    assert "not explained, because" in render(verdict, width=200)


@pytest.mark.slow
def test_equality_with_another_layers_tensor_is_said(small: Model) -> None:
    trace, _ = plant(small, PROMPT, decode=0)
    verdict = judge(small, going_on_with(small, PROMPT, Vcur_3=np.array(trace[Site(0, 1, "Vcur")])))
    said = " ".join(verdict.explanations[0].findings) + verdict.explanations[0].says
    assert "Vcur-1" in said


@pytest.mark.slow
def test_an_explanation_that_leaves_others_says_how_many(small: Model) -> None:
    trace, _ = plant(small, PROMPT, ("rope-base", 1), decode=0)
    wrong = np.array(trace[Site(0, 4, "ffn_up")])
    wrong[3] = np.sort(wrong[3])
    verdict = judge(small, going_on_with(small, PROMPT, ("rope-base", 1), ffn_up_4=wrong))
    assert verdict.counter_check is not None
    assert verdict.counter_check.left == (Site(0, 4, "ffn_up"),)
    said = "with this one change in the reference, 1 site still diverges: ffn_up-4"
    assert said in render(verdict, width=300)


def test_a_counter_check_claims_no_more_sites_than_were_compared(small: Model) -> None:
    trace, _ = plant(small, PROMPT, ("rope-base", 1), decode=0)
    verdict = judge(small, trace)
    assert f"in the reference, all {len(verdict.sites)} recorded sites agree." in render(verdict, width=300)
    few = judge(small, trace.without(lambda site: site.point in {"kq", "ffn_up"}))
    agreeing = len(verdict.sites) - 2 * LAYERS
    said = f"in the reference, all {agreeing} recorded sites (of {len(verdict.sites)}) agree."
    assert said in render(few, width=300)


@pytest.mark.slow
def test_a_single_token_leaves_rope_faults_alike_and_says_what_would_tell_them_apart(small: Model) -> None:
    verdict = judged(small, ("rope-position", 2), tokens=PROMPT[:4], decode=1)
    explanation = verdict.explanations[0]
    assert explanation.hypothesis == "rope-position"
    assert {"rope-none", "rope-offset"} <= {t.hypothesis for t in explanation.equals}
    assert explanation.separate is not None
    assert "run a second decode step (--decode 2)" in explanation.separate
    assert "run several tokens in one step" in explanation.separate
    assert "too few" not in explanation.separate
    more = judged(small, ("rope-position", 2), tokens=PROMPT[:4], decode=2).explanations[0]
    assert "rope-offset" not in {t.hypothesis for t in more.equals}
    assert more.separate is not None
    assert "second decode step" not in more.separate


@pytest.mark.parametrize("tokens", [PROMPT, PROMPT[:5]])
def test_hypotheses_that_make_the_same_weight_are_said_to_be_the_same(tmp_path: Path, tokens: list[int]) -> None:
    """V of the tensor before it, attn_k: by its name, or by its offset."""
    model = open_model(synthetic(tmp_path, n_layer=2))
    swapped = replace(TABLE["weight-swapped"], where=Where((linear,), carries="V"))
    writer = MemoryWriter()
    record_planted(model, tokens, writer, arithmetic=F64, planted=[Planted(swapped, 1, {"tensor": "attn_k.weight"})])
    (explanation,) = judge(model, writer.trace(arithmetic="f32")).explanations
    assert {explanation.hypothesis, *(t.hypothesis for t in explanation.equals)} == {
        "weight-swapped",
        "weight-alignment",
    }
    assert explanation.separate == "they give the same numbers here: look which of them your code does"


def fault(*parts: tuple[str, dict[str, object]]) -> Fault:
    return Fault(tuple((TABLE[id_], values) for id_, values in parts))


def told_apart(model: Model, call: Call, *faults: Fault) -> str:
    """What is said of faults that explain a call as well, in a run of as many tokens as the call has."""
    tokens = tuple(range(len(call.inputs[0])))
    case = Case(Site(0, call.layer, call.point), call, call.inputs[0], call.inputs[0], 1.0, 1e-6, 0.0, None, ())
    trace = Trace.from_arrays([Step(tokens, tokens)], {}, engine={"name": "planted"}, model={})
    return separating(faults, case, Scene(model, F64, lambda _: None), trace)


def test_weights_are_the_same_by_what_they_hold(small: Model) -> None:
    layer = small.weights.layer(1)
    x = np.ones((40, small.hp.n_embd), np.float32)
    call = Call(0, 1, "Vcur", linear, (x, layer["attn_v.weight"], layer["attn_v.bias"]), {})
    few = replace(call, inputs=(x[:9], *call.inputs[1:]))
    bias: tuple[str, dict[str, object]] = ("bias-missing", {})
    before = "weight-of-other-layer", {"layers": -1}
    named = "weight-swapped", {"tensor": "blk.0.attn_v.weight"}
    rows = "weight-row-offset", {"by": 1}
    same = "give the same numbers here: look which of them your code does"
    assert told_apart(small, few, fault(before), fault(named)) == f"they {same}"
    assert told_apart(small, few, fault(before, bias), fault(named, bias)) == f"they {same}"
    assert told_apart(small, few, fault(before), fault(rows)).startswith("9 tokens are too few")
    assert told_apart(small, call, fault(before), fault(rows)).startswith("dump the weight itself")
    told = told_apart(small, call, fault(before), fault(rows), fault(named))
    assert told.startswith("dump the weight itself")
    assert told.endswith(f"; weight-of-other-layer and weight-swapped {same}")


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (("rope-scale", {"factor": 0.5}), ("rope-offset", {"offset": -1}), "run a second decode step (--decode 2)"),
        (("rope-position", {}), ("rope-none", {}), "run several tokens in one step"),
        (("rope-scale", {"factor": 0.5}), ("rope-sign", {}), "run a prompt of thousands of tokens"),
        (("rope-base", {"base": 1e5}), ("rope-denominator", {"denominator": 40}), "they give the same numbers here"),
        (("cache-padding", {"keys": 3}), ("sink-added", {"sink": 1.0986}), "run a prompt of another length"),
    ],
)
def test_what_tells_two_hypotheses_apart_is_said(
    small: Model, one: tuple[str, dict[str, object]], other: tuple[str, dict[str, object]], says: str
) -> None:
    x = np.ones((40, small.hp.n_head, small.hp.head_dim), np.float32)
    how = {"pairing": "interleaved", "base": 1e4, "scale": 1.0}
    call = Call(0, 1, "Qcur_rope", rope, (x, range(40), None), how)
    assert told_apart(small, call, fault(one), fault(other)).startswith(says)


@pytest.mark.slow
def test_an_offset_of_q_and_k_alike_is_said_to_be_harmless(small: Model) -> None:
    explanation = judged(small, ("rope-offset", None)).explanations[0]
    assert explanation.hypothesis == "rope-offset"
    assert explanation.note is not None
    assert "differences of positions" in explanation.note


def test_a_softmax_without_its_maximum_is_named_where_it_overflows(tmp_path: Path) -> None:
    model = open_model(synthetic(tmp_path, n_layer=2, head_dim=256, n_head=2, n_head_kv=2))
    trace, _ = plant(model, PROMPT, decode=0)
    kq = 60 * np.array(trace[Site(0, 1, "kq")])  # a model with large scores
    z = (kq * np.float32(256**-0.5)).astype(np.float32)
    with np.errstate(all="ignore"):
        p = np.exp(np.where(np.tril(np.ones(z.shape[-2:], bool)), z, np.float32(-np.inf)))
        wrong = p / p.sum(-1, keepdims=True)
    assert not np.isfinite(wrong).all()
    wrong = wrong.astype(np.float32)
    explanations = judge(model, going_on_with(model, PROMPT, kq_1=kq, kq_soft_max_1=wrong)).explanations
    assert "softmax-no-max" in [e.hypothesis for e in explanations if Site(0, 1, "kq_soft_max") in e.sites]


def test_a_hypothesis_that_gives_no_number_explains_none(small: Model) -> None:
    trace, _ = plant(small, PROMPT, decode=0)
    wrong = np.array(trace[Site(0, 2, "kq_soft_max")])
    wrong[0, 5] = wrong[0, 5][::-1]
    explanation = judge(small, going_on_with(small, PROMPT, kq_soft_max_2=wrong)).explanations[0]
    assert explanation.hypothesis is None


def test_a_dumped_weight_names_its_fault_exactly(small: Model, tmp_path: Path) -> None:
    weight = small.weights["blk.1.ffn_gate.weight"]
    found: dict[str, str | None] = {}
    for hypothesis, values, wrong in wrong_weights(small, readers(small)[weight.name]):
        if hypothesis.id in found or np.array_equal(wrong.values(), weight.values()):
            continue
        path = tmp_path / "weights.safetensors"
        save_file({weight.name: np.ascontiguousarray(wrong.values())}, path)
        (check,) = check_weights(small, path).tensors
        assert not check.agrees, values
        found[hypothesis.id] = check.hypothesis
    assert len(found) >= 14
    assert {id_: named for id_, named in found.items() if named != id_} == {}


@pytest.mark.slow
def test_the_same_trace_is_explained_in_the_same_bytes(small: Model) -> None:
    trace, _ = plant(small, PROMPT, ("rope-base", 1), ("nibble-order", 3), decode=0)
    assert judge(small, trace).to_json() == judge(small, trace).to_json()


def test_as_many_hypotheses_are_told_of_as_there_are() -> None:
    readme, changelog = ((ROOT / name).read_text() for name in ("README.md", "CHANGELOG.md"))
    for text in (readme, changelog):
        assert re.findall(r"each of ([\d,]+)\s+hypotheses", text) == [str(len(TABLE))]
    assert re.findall(r"lists them, and ([\d,]+) of tokens", readme) == [str(len(TOKENS))]


def test_every_hypothesis_says_what_is_wrong_and_what_to_do() -> None:
    for hypothesis in TABLE.values():
        assert hypothesis.told({})
        assert hypothesis.advice()
        assert not hypothesis.told({}).endswith(".")
        assert not hypothesis.advice().endswith(".")
