"""Layouts: the same run laid out in every way that engines do gives the same verdict."""

from __future__ import annotations

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import judge
from builders.models import synthetic
from builders.relaid import LAYOUTS, ROTATED, half_split, relaid
from firstdiff.dumps import Site, Trace, TraceError
from firstdiff.judging.layouts import HALF
from firstdiff.model.engine import Model, open_model
from firstdiff.verdict import Verdict

PROMPT = [1, *range(300, 311)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("align"), n_layer=4))


def assert_same(verdict: Verdict, plain: Verdict) -> None:
    assert [s.site for s in verdict.diverging] == [s.site for s in plain.diverging]
    assert [s.status for s in verdict.sites] == [s.status for s in plain.sites]


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("bug", [None, ("norm-weight-missing", 2), ("gqa-map", 1), ("rope-base", 3)])
def test_the_layout_does_not_change_the_verdict(model: Model, name: str, bug: tuple[str, int] | None) -> None:
    trace, _ = plant(model, PROMPT, *([bug] if bug else []), decode=2)
    plain = judge(model, trace)
    verdict = judge(model, relaid(trace, LAYOUTS[name]))
    assert plain.layouts == {}
    assert_same(verdict, plain)
    if name not in ("masked scores", "last logits only"):
        assert verdict.layouts


def test_a_layout_is_stated_in_the_verdict(model: Model) -> None:
    trace, _ = plant(model, PROMPT)
    verdict = judge(model, relaid(trace, LAYOUTS["half-split heads"]))
    assert verdict.layouts == dict.fromkeys(ROTATED, HALF)
    assert '"layouts"' in verdict.to_json()


def test_a_permutation_that_one_layer_needs_is_a_finding(model: Model) -> None:
    trace, _ = plant(model, PROMPT, decode=0)
    verdict = judge(model, relaid(trace, lambda s, x: half_split(x) if s.layer == 2 and s.point == "Qcur" else x))
    assert [str(s.site) for s in verdict.diverging] == ["Qcur-2", "Qcur_rope-2"]
    assert verdict.layouts == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug", ["rope-pairing", "norm-weight-missing", "weight-reinterpreted", "gqa-map", "scale-missing"]
)
def test_a_bug_at_every_layer_is_no_layout(model: Model, bug: str) -> None:
    trace, touched = plant(model, PROMPT, (bug, None), decode=0)
    verdict = judge(model, trace)
    assert verdict.layouts == {}
    assert [str(s.site) for s in verdict.diverging] == touched


@pytest.mark.slow
def test_fused_products_are_taken_apart(model: Model) -> None:
    trace, touched = plant(model, PROMPT, ("weight-swapped", 1), decode=1)

    def fused(order: str) -> Trace:
        tensors = {
            s: np.array(trace[s])
            for s in trace.sites()
            if s.point not in ("Qcur", "Kcur", "Vcur", "ffn_gate", "ffn_up")
        }
        for s in trace.sites():
            if s.point == "Qcur":
                q, k, v = (np.array(trace[Site(s.step, s.layer, p)]) for p in ("Qcur", "Kcur", "Vcur"))
                n = len(q)
                if order == "blocks":
                    whole = np.concatenate([x.reshape(n, -1) for x in (q, k, v)], -1)
                else:  # two query heads share a KV head here
                    whole = np.concatenate([q.reshape(n, 4, -1), k, v], -1).reshape(n, -1)
                tensors[Site(s.step, s.layer, "wqkv")] = whole
            if s.point == "ffn_gate":
                pair = [np.array(trace[Site(s.step, s.layer, p)]) for p in ("ffn_gate", "ffn_up")]
                tensors[Site(s.step, s.layer, "ffn_gate_up")] = np.concatenate(pair, -1)
        return Trace.from_arrays(trace.steps, tensors, engine=trace.engine, model={})

    for order in ("blocks", "per head"):
        verdict = judge(model, fused(order))
        assert [str(s.site) for s in verdict.diverging] == touched
        assert verdict.coverage["recorded"] == verdict.coverage["sites"]
        assert "fused" in verdict.layouts["Vcur"]


def test_a_stated_layout_is_taken(model: Model) -> None:
    trace, _ = plant(model, PROMPT)
    layouts = {"Qcur": ["head", "token", "head_dim"], "l_out": ["feature", "token"]}
    heads = relaid(
        trace,
        lambda s, x: x.transpose(1, 0, 2) if s.point == "Qcur" else x.T if s.point == "l_out" else x,
        layouts=layouts,
    )
    verdict = judge(model, heads)
    assert verdict.verdict == "agrees"
    assert verdict.layouts["l_out"] == "[feature, token]"


def test_a_stated_layout_of_other_axes_is_refused(model: Model) -> None:
    trace, _ = plant(model, PROMPT)
    with pytest.raises(TraceError, match="layout of 'Qcur' has axes"):
        judge(model, relaid(trace, lambda _, x: x, layouts={"Qcur": ["feature", "token"]}))


def test_square_shapes_are_told_apart_by_the_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    square = open_model(synthetic(tmp_path_factory.mktemp("square"), n_layer=3, n_head=8, n_head_kv=8))
    trace, touched = plant(square, list(range(3, 11)), ("scale-missing", 1), decode=0)  # 8 tokens, 8 heads
    verdict = judge(square, relaid(trace, LAYOUTS["heads first"]))
    assert [str(s.site) for s in verdict.diverging] == touched
    assert verdict.layouts["Qcur"] == "[head, token, head_dim]"


def test_the_value_after_the_final_norm_is_not_taken_for_the_last_layers_output(model: Model) -> None:
    trace, touched = plant(model, PROMPT, ("gqa-map", 1), decode=1)
    normed = {s: np.array(trace[s]) for s in trace.sites()}
    for step in (0, 1):
        normed[Site(step, 3, "l_out")] = normed[Site(step, None, "result_norm")]
    verdict = judge(model, Trace.from_arrays(trace.steps, normed, engine=trace.engine, model={}))
    assert [str(s.site) for s in verdict.diverging] == touched
    reasons = {str(s.site): s.reason for s in verdict.sites if s.reason}
    assert set(reasons) == {"l_out-3", "l_out-3@1"}
    assert "after the final norm" in str(reasons["l_out-3"])
