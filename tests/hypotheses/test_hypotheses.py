"""Hypotheses on shapes and files that few models have: frequency factors, heads of another length, hidden rows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import going_on_with, judge
from builders.models import synthetic
from builders.tiny_models import tiny
from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Step
from firstdiff.hypotheses import TABLE, Scene
from firstdiff.hypotheses.masks import BLIND
from firstdiff.hypotheses.planting import Planted, record_planted
from firstdiff.model.arithmetic import F32, F64, Array
from firstdiff.model.attention import visible
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import linear, rope, signature
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value
from firstdiff.verdict import Explanation

PROMPT = [1, *range(70, 110)]


@pytest.fixture(scope="module")
def factored(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Llama 3's frequency factors, and heads twice as long as n_embd / n_head."""
    folder = tmp_path_factory.mktemp("factored")
    return open_model(synthetic(folder, n_layer=2, n_embd=64, n_head=4, n_head_kv=2, head_dim=32, rope_factors=True))


def explained(model: Model, bug: str, values: dict[str, Any] | None = None) -> Explanation:
    """The one explanation of a fault at layer 1."""
    writer = MemoryWriter()
    record_planted(model, PROMPT, writer, arithmetic=F64, planted=[Planted(TABLE[bug], 1, values)])
    (explanation,) = judge(model, writer.trace(arithmetic="f32")).explanations
    return explanation


# Frequency factors


def test_heads_of_another_length_are_no_trouble_where_there_are_frequency_factors(factored: Model) -> None:
    assert explained(factored, "rope-pairing").hypothesis == "rope-pairing"


def test_values_rotated_by_factored_angles_are_named(factored: Model) -> None:
    assert explained(factored, "rope-on-v").hypothesis == "rope-on-v"


def test_values_are_rotated_by_the_angles_of_the_file(factored: Model) -> None:
    trace, _ = plant(factored, PROMPT, ("rope-on-v", None), decode=0)
    factors = factored.weights["rope_freqs.weight"]
    x, base = np.array(trace[Site(0, 1, "Vcur")]), factored.hp.rope_base
    turned = rope(x, range(len(x)), factors, pairing="interleaved", base=base, arithmetic=F32)
    assert np.abs(turned - trace[Site(0, 1, "v_cache")]).max() < 1e-6


@pytest.mark.parametrize("values", [{"dims": 16, "over": 16}, {"dims": 16, "over": 32}])
def test_a_partial_rotation_takes_the_factors_of_the_pairs_it_turns(factored: Model, values: dict[str, int]) -> None:
    found = explained(factored, "rope-partial", values)
    assert found.hypothesis == "rope-partial"
    assert found.attributes == values


# Rows that see no key


@pytest.mark.parametrize("blind", [None, *BLIND])
def test_a_mask_that_hides_a_whole_row_is_named_whatever_that_row_holds(factored: Model, blind: str | None) -> None:
    values = {"offset": -1} | ({} if blind is None else {"blind": blind})
    found = explained(factored, "mask-offset", values)
    assert found.hypothesis == "mask-offset"
    assert found.attributes == values


def test_a_mask_of_large_negative_numbers_leaves_a_hidden_row_uniform(factored: Model) -> None:
    trace, _ = plant(factored, PROMPT, decode=0)
    z = np.array(trace[Site(0, 1, "kq")]) * np.float32(factored.hp.head_dim**-0.5)
    hidden = ~visible(*z.shape[-2:], -1)
    z = z + np.where(hidden, np.finfo(np.float32).min, np.float32(0))
    p = np.exp(z - z.max(-1, keepdims=True))
    wrong = going_on_with(factored, PROMPT, kq_soft_max_1=p / p.sum(-1, keepdims=True))
    explanation = judge(factored, wrong).explanations[0]
    assert explanation.hypothesis == "mask-offset"
    assert explanation.attributes == {"offset": -1, "blind": "uniform over all keys"}


# Odd shapes


@dataclass
class Trying(Probe):
    """Tries every way of every hypothesis at every call, on what was observed there: nothing, noise, or no numbers."""

    model: Model
    by_name: bool = False
    tried: set[str] = field(default_factory=set, init=False)
    values: dict[Site, Array] = field(default_factory=dict, init=False)
    ran: dict[Site, int] = field(default_factory=dict, init=False)

    def value(self, call: Call) -> Value:
        if self.by_name:  # as an architecture may write it
            named = dict(islice(call.arguments.items(), 2, len(call.inputs)))
            call = replace(call, inputs=call.inputs[:2], sources=call.sources[:2], attributes=call.attributes | named)
        value = self.values[Site(call.step, call.layer, call.point)] = call.compute(self.arithmetic)
        noisy = value * (1 + 0.1 * np.random.default_rng(0).standard_normal(value.shape)).astype(value.dtype)
        scene = Scene(self.model, self.arithmetic, self.values.get, self.ran)
        for hypothesis in (h for h in TABLE.values() if h.where.matches(call)):
            for observed in (None, noisy, np.zeros_like(value), np.full_like(value, np.nan)):
                for values in islice(hypothesis.ways(call, scene, observed), 12):
                    assert hypothesis.told(values, self.model)
                    wrong = hypothesis.apply(call, scene, values)
                    if wrong is not None:
                        wrong.compute(self.arithmetic)
                        self.tried.add(hypothesis.id)
        self.ran[Site(call.step, call.layer, call.point)] = call.order
        return Value(value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"n_embd": 64, "n_head": 4, "n_head_kv": 2, "head_dim": 32, "rope_factors": True},
        {"n_embd": 60, "n_head": 3, "n_head_kv": 1, "head_dim": 6, "rope_factors": True, "biases": True},
        {"n_embd": 8, "n_head": 16, "n_head_kv": 8, "head_dim": 4, "n_ff": 3},  # more heads than numbers
        {"n_embd": 2, "n_head": 1, "n_head_kv": 1, "head_dim": 2, "n_ff": 1, "tied": True, "rope_scale": 0.5},
    ],
)
def test_no_hypothesis_fails_on_an_odd_shape(tmp_path: Path, shape: dict[str, Any]) -> None:
    assert (
        len(tried(Trying(F32, open_model(synthetic(tmp_path, n_layer=1, n_vocab=320, **{"n_ff": 32, **shape}))))) > 40
    )


def tried(probe: Trying) -> set[str]:
    """What is tried in a prompt and a decoded step."""
    steps = [Step(tuple(range(5)), tuple(range(5))), Step((5,), (5,))]
    with np.errstate(all="ignore"):
        for _ in probe.model.forward(steps, probe):
            pass
    return probe.tried


def test_operands_may_be_left_out_or_given_by_name(tmp_path: Path) -> None:
    """Frequency factors, the bias and the scale of a rotation, above all."""
    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_head_kv": 2, "n_ff": 32}
    llama = open_model(synthetic(tmp_path, biases=True, rope_factors=True, head_dim=32, **shape))
    assert tried(Trying(F32, llama, by_name=True)) == tried(Trying(F32, llama))
    qwen2 = tried(Trying(F32, open_model(tiny("qwen2", tmp_path, head_dim=16, **shape))))
    assert {"rope-base", "rope-factors", "rope-partial", "rope-on-v", "bias-missing"} <= qwen2
    qwen3 = tried(Trying(F32, open_model(tiny("qwen3", tmp_path, head_dim=32, **shape))))
    assert {"rope-base", "norm-eps", "head-dim", "qk-permutation", "weight-row-offset"} <= qwen3


def test_a_trace_of_an_architecture_that_gives_operands_by_name_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(synthetic(tmp_path, n_layer=3, biases=True, rope_factors=True))
    trace, _ = plant(model, PROMPT, ("bias-missing", 1), ("rope-factors", 2), decode=1)
    right = judge(model, trace)
    run = Probe.__call__

    def by_name(probe: Probe, point: str | None, op: Any, *inputs: Any, **attributes: Any) -> Value:
        if op in (linear, rope):
            names = list(signature(op).parameters)
            attributes |= dict(zip(names[2:], inputs[2:], strict=False))
            inputs = inputs[:2]
        return run(probe, point, op, *inputs, **attributes)

    monkeypatch.setattr(Probe, "__call__", by_name)
    assert judge(model, trace) == right
    assert {e.hypothesis for e in right.explanations} == {"bias-missing", "rope-factors"}


# What an entry says is true of the model at hand


def test_what_is_said_is_true_of_the_architecture(tmp_path: Path, factored: Model) -> None:
    qwen = open_model(tiny("qwen3", tmp_path, n_layer=2))
    said = {id_: (TABLE[id_].told({}, qwen), TABLE[id_].advice(qwen)) for id_ in TABLE}
    assert said["rope-pairing"][0] == "interleaved pairs, where the order of the head dimensions needs half-split ones"
    assert "(i, i + head_dim / 2)" in said["rope-pairing"][1]
    assert "permutes none of qwen3's" in said["qk-permutation"][1]
    assert "'qwen3.rope.freq_base'" in said["rope-base"][1]
    assert not any("<architecture>" in text for texts in said.values() for text in texts)
    pairing = TABLE["rope-pairing"]
    assert pairing.told({}, factored).startswith("half-split pairs, where the order of the head dimensions needs inter")
    assert "Hugging Face's order" in pairing.advice(factored)
    assert "GGUF's conversion has done already" in TABLE["qk-permutation"].advice(factored)


@pytest.mark.parametrize("rows", ["llama's", "the inverse of llama's"])
def test_rows_that_no_conversion_permutes_are_said_to_be_permuted(tmp_path: Path, rows: str) -> None:
    found = explained(open_model(tiny("qwen2", tmp_path, n_layer=2)), "qk-permutation", {"rows": rows})
    assert found.says == f"the rows of each head in {rows} order"
    assert found.attributes == {"rows": rows}


def test_a_pairing_that_is_not_the_models_is_said_to_be_the_other_one(tmp_path: Path) -> None:
    found = explained(open_model(tiny("qwen2", tmp_path, n_layer=2)), "rope-pairing")
    assert found.says == "interleaved pairs, where the order of the head dimensions needs half-split ones"
