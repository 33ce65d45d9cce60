"""What explanations do not claim: more than the numbers show, of sites not searched, or with others as good unsaid."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import going_on_with, judge
from builders.models import in_blocks, synthetic
from builders.traces import MemoryWriter, altered
from firstdiff.dumps import Site, Trace
from firstdiff.explaining.covering import SEARCHES
from firstdiff.explaining.telling import weak
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.hypotheses.where import Where
from firstdiff.model.arithmetic import F64, GGML_CPU, Arithmetic
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import linear
from firstdiff.verdict import Explanation, Verdict

PROMPT = [1, *range(70, 110)]
LAYERS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("careful")


@pytest.fixture(scope="module")
def half(folder: Path) -> Model:
    return open_model(in_blocks("F16", folder, n_layer=LAYERS))


def planted(
    model: Model, id_: str, layer: int | None, arithmetic: Arithmetic = F64, stated: str = "f32", **values: Any
) -> Trace:
    """A trace with one fault, with parameters of its own."""
    writer = MemoryWriter()
    faults = [Planted(TABLE[id_], layer, values)]
    assert record_planted(model, PROMPT, writer, arithmetic=arithmetic, decode=0, planted=faults)
    return writer.trace(arithmetic=stated)


def of(verdict: Verdict, site: str) -> Explanation:
    return next(e for e in verdict.explanations if site in map(str, e.sites))


@pytest.mark.slow
def test_the_way_that_fits_best_is_named_where_the_floor_is_wide(half: Model) -> None:
    trace = planted(half, "activation-wrong", 2, GGML_CPU, "ggml-cpu", activation="gelu (quick)")
    few = trace.without(lambda site: site.point not in ("embd", "l_out", "result_output"))
    explanation = of(judge(half, few), "l_out-2")
    assert explanation.says == "gelu (quick) in place of SiLU"


@pytest.mark.slow
def test_what_leaves_much_of_the_error_is_no_explanation(half: Model) -> None:
    trace = planted(half, "norm-eps", 2, GGML_CPU, "ggml-cpu", eps=0.02)
    kept = ("embd", "kqv_out", "attn_out", "ffn_inp", "l_out", "result_output")
    explanations = judge(half, trace.without(lambda site: site.point not in kept)).explanations
    assert explanations
    for e in explanations:
        assert e.hypothesis in (None, "norm-eps") or e.note is not None


@pytest.mark.parametrize("point", ["ffn_out", "Qcur"])
def test_nothing_but_nan_is_explained_by_nothing(half: Model, point: str) -> None:
    trace, _ = plant(half, PROMPT, decode=0)
    explanation = judge(half, altered(trace, **{f"{point}_2": lambda x: np.full_like(x, np.nan)})).explanations[0]
    assert str(explanation.site) == f"{point}-2"
    assert explanation.hypothesis is None
    assert any("NaN" in finding for finding in explanation.findings)


def test_what_explains_the_first_site_as_well_is_said(folder: Path) -> None:
    """Q and K exchanged is one fused tensor split wrongly, and two weights taken for each other."""
    (folder / "square").mkdir()
    model = open_model(synthetic(folder / "square", n_layer=4, n_head=4, n_head_kv=4))
    swapped = {"Q": "attn_k.weight", "K": "attn_q.weight"}
    hypothesis = TABLE["weight-swapped"]
    faults = [
        Planted(dataclasses.replace(hypothesis, where=Where((linear,), carries=operand)), 2, {"tensor": tensor})
        for operand, tensor in swapped.items()
    ]
    writer = MemoryWriter()
    touched = record_planted(model, PROMPT, writer, arithmetic=F64, decode=0, planted=faults)
    assert list(map(str, touched)) == ["Qcur-2", "Kcur-2"]
    verdict = judge(model, writer.trace(arithmetic="f32"))
    assert {str(site) for e in verdict.explanations for site in e.sites} == {"Qcur-2", "Kcur-2"}
    for explanation in verdict.explanations:
        assert explanation.hypothesis == "weight-swapped" or "weight-swapped ('attn_k.weight' in" in str(
            explanation.note
        )
        assert explanation.next_best is None or explanation.next_best.residual > (explanation.residual or 0)


@pytest.mark.slow
def test_sites_that_were_not_searched_are_not_said_to_be(small: Model) -> None:
    rng = np.random.default_rng(0)
    trace, _ = plant(small, PROMPT, decode=0)
    noise = {f"Qcur_{n}": lambda x: x * (1 + 0.01 * rng.standard_normal(x.shape).astype(np.float32)) for n in range(6)}
    explanation = of(judge(small, altered(trace, **noise)), "Qcur-5")
    assert explanation.hypothesis is None
    assert len(explanation.sites) == LAYERS > SEARCHES
    assert explanation.says.endswith("gives these numbers at Qcur-0, Qcur-1, Qcur-2 and Qcur-3, where all were tried")


@pytest.mark.slow
def test_what_is_found_at_one_site_is_not_said_of_all(small: Model) -> None:
    rng = np.random.default_rng(0)
    wrong = going_on_with(
        small,
        PROMPT,
        ("weight-row-offset", 3),
        Qcur_0=lambda x: np.where(rng.random(x.shape) < 0.3, -x, x),
        Qcur_1=lambda x: x * (1 + 0.01 * rng.standard_normal(x.shape).astype(np.float32)),
    )
    verdict = judge(small, wrong)
    assert of(verdict, "Qcur-3").hypothesis == "weight-row-offset"
    unknown = of(verdict, "Qcur-0")
    assert unknown.sites == (Site(0, 0, "Qcur"), Site(0, 1, "Qcur"))
    turned = [finding for finding in unknown.findings if "wrong sign" in finding]
    assert turned
    assert all(finding.startswith("at Qcur-0, ") for finding in turned)


def test_each_call_of_a_segment_has_its_own_ways(small: Model) -> None:
    trace = planted(small, "weight-swapped", 2, tensor="ffn_gate.weight")
    few = trace.without(lambda site: site.point == "ffn_norm")
    explanation = of(judge(small, few), "ffn_up-2")
    assert "weight-swapped" in {explanation.hypothesis, *(t.hypothesis for t in explanation.equals)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("id_", "values", "missing"),
    [
        ("scale-wrong", {"scale": 0.3}, {"kq", "kq_soft_max"}),
        ("softcap-added", {"cap": 0.3}, {"kq", "kq_soft_max"}),
        ("window-added", {"window": 4}, {"kq", "kq_soft_max"}),
        ("rope-base", {"base": 20000.0}, {"Qcur_rope", "Kcur_rope"}),
        ("norm-eps", {"eps": 0.0037}, {"attn_norm"}),
    ],
)
def test_parameters_of_what_was_not_recorded_are_fitted(
    small: Model, id_: str, values: dict[str, float], missing: set[str]
) -> None:
    trace = planted(small, id_, 2, **values)
    verdict = judge(small, trace.without(lambda site: site.point in missing))
    assert verdict.explanations
    for explanation in verdict.explanations:
        assert explanation.hypothesis == id_
        assert explanation.attributes == pytest.approx(values, rel=1e-3)


@pytest.mark.slow
def test_the_counter_check_sees_what_a_change_breaks(small: Model) -> None:
    """Q alone was made of a norm with another epsilon, which was not recorded: K and V were not."""
    right, _ = plant(small, PROMPT, decode=0)
    wrong = planted(small, "norm-eps", 2, eps=0.0037)
    mixed = altered(right, Qcur_2=lambda _: np.array(wrong[Site(0, 2, "Qcur")]))
    verdict = judge(small, mixed.without(lambda site: site.point == "attn_norm"))
    assert of(verdict, "Qcur-2").hypothesis == "norm-eps"
    assert verdict.counter_check is not None
    assert {"Kcur-2", "Vcur-2"} <= set(map(str, verdict.counter_check.left))


@pytest.mark.slow
def test_the_counter_check_keeps_the_floor_of_what_storing_takes(small: Model) -> None:
    trace = planted(small, "softcap-added", None, cap=0.3)
    narrow = {s: np.array(trace[s]).astype(np.float16) for s in trace.sites()}
    verdict = judge(small, Trace.from_arrays(trace.steps, narrow, engine=trace.engine, model={}))
    assert {e.hypothesis for e in verdict.explanations} == {"softcap-added"}
    assert verdict.counter_check is not None
    assert verdict.counter_check.left == ()


def test_weak_evidence_is_called_weak() -> None:
    (said,) = weak(2e-3, 1e-2)
    assert said == "the evidence is weak, because 20% of the error is left: record more points between"
    assert weak(2e-3, 1.0) == []


def test_two_faults_that_leave_nothing_of_a_product_are_not_known_by_it(folder: Path) -> None:
    """Scales that are nearly zero leave only the bias, and so does any pair of which one keeps what the other drops."""
    model = open_model(in_blocks("Q8_0", folder, n_layer=4, biases=True))
    trace = planted(model, "half-as-bf16", 2)
    assert of(judge(model, trace), "Qcur-2").hypothesis == "half-as-bf16"
    table = {id_: h for id_, h in TABLE.items() if id_ != "half-as-bf16"}
    verdict = judge(model, trace, table=table)
    assert of(verdict, "Qcur-2").says == "the product leaves out all of its inputs: only its bias is left"
