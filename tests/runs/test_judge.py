"""The verdict on a candidate: drift, logits, the witness, and the record on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.engines import recorded_by_llama_cpp
from builders.hypotheses import plant
from builders.judging import dump, judge
from builders.models import synthetic
from builders.relaid import on_disk
from firstdiff.dumps import Site, Trace
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.hypotheses.where import NORMS
from firstdiff.judging.logits import compare_logits
from firstdiff.model.engine import Model, open_model
from firstdiff.verdict import Status

PROMPT = [1, *range(300, 311)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judge")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return open_model(synthetic(folder, n_layer=3))


@pytest.fixture(scope="module")
def theirs(llama: None, folder: Path, model: Model) -> Trace:
    trace, _ = recorded_by_llama_cpp(model.gguf.path, folder / "llama.cpp", PROMPT, decode=0)
    return trace


def test_two_that_agree_settle_who_is_wrong(model: Model, theirs: Trace) -> None:
    candidate, touched = plant(model, PROMPT, ("gqa-map", 1), decode=0)
    verdict = judge(model, candidate, witness=theirs)
    assert [str(s.site) for s in verdict.diverging] == touched
    assert verdict.witness is not None
    assert verdict.witness.diverges == ()
    assert verdict.witness.agrees == len(theirs.sites())
    assert (verdict.exit_code, verdict.against) == (1, "llama.cpp:cpu")


def test_where_the_witness_leaves_the_reference_too_nobody_is_accused(model: Model) -> None:
    candidate, _ = plant(model, PROMPT, ("gqa-map", 1), ("rope-base", 2), decode=0)
    doubtful, _ = plant(model, PROMPT, ("gqa-map", 1), decode=0)
    verdict = judge(model, candidate, witness=doubtful)
    assert [str(s.site) for s in verdict.diverging] == ["Qcur_rope-2", "Kcur_rope-2"]
    doubted = [s for s in verdict.sites if s.status is Status.NOT_COMPARABLE]
    assert [str(s.site) for s in doubted] == ["kq-1", "kqv_out-1"]
    assert all("the reference may be wrong" in (s.reason or "") for s in doubted)


def test_drift_is_large_where_local_errors_are_rounding(model: Model, theirs: Trace) -> None:
    verdict = judge(model, theirs)  # weights are F32, but the cache and attention operands are f16
    drift = {str(s.site): s.drift for s in verdict.sites}
    assert verdict.verdict == "agrees"
    assert verdict.worst_error <= 1e-6
    assert drift["embd"] == 0
    assert drift["l_out-2"] is not None
    assert drift["l_out-2"] > 1e-5


def test_nothing_that_can_be_compared_is_incomparable_and_no_pass(model: Model) -> None:
    trace, _ = plant(model, PROMPT, decode=0)
    wrong = Trace.from_arrays(
        trace.steps, {s: np.zeros((3, 5), np.float32) for s in trace.sites()}, engine=trace.engine, model={}
    )
    verdict = judge(model, wrong)
    assert (verdict.verdict, verdict.exit_code) == ("incomparable", 4)
    assert verdict.sites[0].reason == "recorded shape [3, 5], expected [12, 256]"


def test_merged_heads_and_a_batch_of_one_are_the_same_numbers(model: Model) -> None:
    trace, _ = plant(model, PROMPT, decode=0)
    reshaped = {
        s: x.reshape(1, len(x), -1) if s.point not in ("kq", "kq_soft_max") else x[None]
        for s in trace.sites()
        for x in (trace[s],)
    }
    verdict = judge(model, Trace.from_arrays(trace.steps, reshaped, engine=trace.engine, model={}))
    assert verdict.coverage["agrees"] == len(trace.sites())


def test_a_small_error_in_one_token_is_not_hidden_by_a_huge_one(model: Model) -> None:
    trace, _ = plant(model, PROMPT, decode=0)
    tensors = {s: np.array(trace[s]) for s in trace.sites()}
    site = Site(0, 1, "ffn_inp")
    tensors[site][7, 100] *= 1 + 1e-3  # 1e-3 of one element of 256 in one token of twelve
    verdict = judge(model, Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={}))
    assert verdict.first is not None
    assert (str(verdict.first.site), verdict.first.where) == ("ffn_inp-1", {"token": "7", "feature": "100"})


def test_a_flip_on_a_near_tie_is_within_the_noise() -> None:
    rng = np.random.default_rng(1)
    against = rng.standard_normal(1000)
    against[[3, 5]] = 6.0, 5.99
    candidate = against + 0.02 * rng.standard_normal(1000)
    candidate[5] = 6.03
    flip = compare_logits(0, candidate, against)
    assert not flip.top1_agrees
    assert flip.within_noise
    assert 0 < flip.kl < 1e-3
    assert flip.margin == pytest.approx(0.01)
    wrong = candidate.copy()
    wrong[77] = 9.0
    assert not compare_logits(0, wrong, against).within_noise


def test_the_noise_of_the_logits_is_never_a_faults(model: Model) -> None:
    clean, _ = plant(model, PROMPT, decode=1)
    assert all(x.noise is not None for x in judge(model, clean).logits)
    for fault in ("rope-base", "scale-missing"):
        trace, _ = plant(model, PROMPT, (fault, 1), decode=1)
        assert [x.noise for x in judge(model, trace).logits] == [None, None]


def test_verdict_json_is_strict_and_the_same_twice(model: Model) -> None:
    trace, _ = plant(model, PROMPT, ("scale-missing", 1), decode=1)
    tensors = {s: np.array(trace[s]) for s in trace.sites()}
    tensors[Site(0, 2, "ffn_up")][0, 0] = np.nan
    broken = Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={})
    text, again = judge(model, broken).to_json(), judge(model, broken).to_json()
    assert text == again
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["format"] == "firstdiff-verdict"
    assert record["first"]["site"] == "kq_soft_max-1"
    assert {"site", "op", "status", "local_error", "floor", "drift", "worst", "where"} <= set(record["first"])
    assert [s["site"] for s in record["diverging"]] == ["kq_soft_max-1", "ffn_up-2", "kq_soft_max-1@1"]
    assert record["diverging"][1]["local_error"] == "inf"
    assert record["coverage"]["sites"] == len(record["sites"]) == len(trace.sites())


def test_notes_of_a_trace_reach_the_verdict(model: Model) -> None:
    trace, _ = plant(model, PROMPT, decode=0)
    verdict = judge(
        model, replace(trace, notes=("step 1 is unreadable",)), witness=replace(trace, notes=("cut short",))
    )
    assert verdict.notes == ("step 1 is unreadable", "witness: cut short")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "layer", "wrong"), [("f32", 1, {1}), ("f16", 1, {1}), ("f16", None, set())])
def test_norms_in_bf16_are_a_fault_at_one_layer_and_an_engines_way_at_all(
    model: Model, dtype: str, layer: int | None, wrong: set[int]
) -> None:
    norms = replace(TABLE["other-arithmetic"], where=NORMS)
    planted = Planted(norms, layer, {"arithmetic": "bf16"})
    verdict = judge(model, on_disk(dump(model, PROMPT, planted), dtype))
    assert {s.layer for s in verdict.diverging} == wrong
