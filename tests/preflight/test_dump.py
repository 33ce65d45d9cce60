"""The dump before the engine: what a dump does not hold is named, no tensor is accused of it, faults are found too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import dump, judge
from builders.models import in_blocks, synthetic
from builders.relaid import LAYOUTS, hugging_face, relaid
from builders.wrong_dumps import (
    BEFORE,
    BRANCH,
    NORMED,
    PAIR,
    PROMPT,
    Held,
    another_layer,
    another_point,
    another_step,
    held_instead,
    named,
)
from firstdiff.dumps import Site, Trace
from firstdiff.model.arithmetic import ARITHMETICS, GGML_CPU, Array
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.preflight.dump import dump_findings
from firstdiff.reports.sentences import sentences
from firstdiff.verdict import Status, Verdict


def only(trace: Trace, *points: str) -> Trace:
    return trace.without(lambda site: site.point not in points)


def not_comparable(verdict: Verdict) -> set[Site]:
    return {s.site for s in verdict.sites if s.status is Status.NOT_COMPARABLE}


WRONG: dict[str, tuple[Held, str, str]] = {
    "layers that hold the first": (
        another_layer({1: 0, 2: 0, 3: 0}), "stale-layers", "layers 1 to 3 hold layer 0's tensors"
    ),
    "layers that hold the last": (
        another_layer({0: 3, 1: 3, 2: 3}), "stale-layers", "layers 0 to 2 hold layer 3's tensors"
    ),
    "a layer that holds the one before": (another_layer({2: 1}), "stale-layers", "layer 2 holds layer 1's tensors"),
    "a step that repeats another": (another_step(2, 1), "stale-step", "step 2 repeats step 1's tensors"),
    "a branch": (BRANCH, "branch-as-sum", "l_out at every layer: your dump holds the branch"),
    "both branches": (PAIR, "branch-as-sum", "ffn_inp and l_out at every layer: "),
    "a branch at one layer": (
        another_point({"l_out": ("ffn_out", 0)}, range(1, 2)), "branch-as-sum", "l_out at layer 1: your dump"
    ),
    "a layer's input": (BEFORE, "earlier-sum", "l_out at every layer: your dump holds an earlier sum"),
    "a normed sum": (NORMED, "norm-as-sum", "your dump holds the sum after the next norm"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_dump_of_a_right_engine_is_named_and_no_tensor_is_accused(
    model: Model, clean: Trace, kind: str
) -> None:
    held, id_, says = WRONG[kind]
    verdict = judge(model, held_instead(clean, held))
    assert verdict.diverging == ()
    assert named(verdict) == [id_]
    assert says in verdict.dump[0].says
    assert not_comparable(verdict) >= set(verdict.dump[0].sites)
    assert sentences(verdict)[0].startswith("Before any tensor, the dump: ")


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_dump_of_a_wrong_engine_is_named_and_so_is_the_fault(model: Model, kind: str) -> None:
    held, id_, _ = WRONG[kind]
    bug = ("gqa-map", 3 if kind == "layers that hold the last" else 0)
    trace, (touched, *_) = plant(model, PROMPT, bug, decode=2)
    verdict = judge(model, held_instead(trace, held))
    assert named(verdict) == [id_]
    assert verdict.first is not None
    assert str(verdict.first.site) == touched
    assert {e.hypothesis for e in verdict.explanations} == {bug[0]}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["as transformers has it", "ggml's axis order"])
@pytest.mark.parametrize("kind", ["layers that hold the first", "both branches"])
def test_a_wrong_dump_is_named_in_any_layout(model: Model, clean: Trace, kind: str, layout: str) -> None:
    held, id_, _ = WRONG[kind]
    verdict = judge(model, relaid(held_instead(clean, held), LAYOUTS[layout]))
    assert verdict.diverging == ()
    assert named(verdict) == [id_]
    assert verdict.layouts


def test_a_branch_is_told_where_the_branch_itself_is_not_recorded(model: Model, clean: Trace) -> None:
    trace = held_instead(clean, BRANCH).without(lambda site: site.point == "ffn_out")
    verdict = judge(model, trace)
    assert verdict.diverging == ()
    assert named(verdict) == ["branch-as-sum"]


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["residual-missing", "branch-missing", "residual-twice", "residual-scale"])
@pytest.mark.parametrize("layer", [None, 1])
def test_a_sum_that_the_engine_went_on_with_is_the_engines(model: Model, bug: str, layer: int | None) -> None:
    trace, (touched, *_) = plant(model, PROMPT, (bug, layer), decode=2)
    verdict = judge(model, trace)
    assert verdict.dump == ()
    assert verdict.first is not None
    assert str(verdict.first.site) == touched


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["weight-of-other-layer", "wrong-input", "cache-stale", "rope-position"])
def test_a_tensor_of_another_layer_or_step_that_the_engine_went_on_with_is_the_engines(model: Model, bug: str) -> None:
    verdict = judge(model, plant(model, PROMPT, (bug, None), decode=2)[0])
    assert verdict.dump == ()
    assert verdict.diverging


UNUSED: dict[str, tuple[Held, str]] = {
    "rotations that hold their input": (
        another_point({"Kcur_rope": ("Kcur", 0)}), "Kcur_rope at every layer: your dump holds the operation's input"
    ),
    "one product's buffer is never read again": (
        lambda _, s: Site(s.step, 0, "ffn_up") if s.point == "ffn_up" else None,
        "ffn_up at layers 1 and up: your dump holds the tensor of layer 0",
    ),
    "V of another layer": (
        lambda _, s: Site(s.step, 3, "Vcur") if s.point == "Vcur" and s.layer == 1 else None,
        "Vcur at layer 1: your dump holds the tensor of layer 3",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNUSED)
def test_a_tensor_that_nothing_was_computed_from_is_one_of_the_dump(model: Model, clean: Trace, kind: str) -> None:
    held, says = UNUSED[kind]
    verdict = judge(model, held_instead(clean, held))
    assert verdict.diverging == ()
    assert named(verdict) == ["not-what-was-used"]
    assert says in verdict.dump[0].says


def test_a_norm_that_holds_its_input_is_told_in_another_order_of_head_dimensions(model: Model, clean: Trace) -> None:
    verdict = judge(model, relaid(held_instead(clean, another_point({"attn_norm": ("l_out", -1)})), hugging_face))
    assert verdict.diverging == ()
    assert "attn_norm at every layer: your dump holds the norm's input" in verdict.dump[0].says
    assert set(verdict.layouts) >= {"Qcur", "Kcur", "Qcur_rope", "Kcur_rope"}


def of_tokens(trace: Trace, *tokens: Sequence[int]) -> Trace:
    """The trace as if it had run other tokens."""
    steps = [replace(step, tokens=tuple(of)) for step, of in zip(trace.steps, tokens, strict=True)]
    return replace(trace, steps=tuple(steps))


def test_tensors_of_other_tokens_are_told_by_their_embedding(model: Model, clean: Trace) -> None:
    first, second, third = (step.tokens for step in clean.steps)
    verdict = judge(model, of_tokens(clean, first, [77], third))
    assert verdict.diverging == ()
    assert named(verdict) == ["other-tokens"]
    assert f"embd@1 holds the row of token {second[0]}, where 77 is stated" in verdict.dump[0].says
    assert verdict.tokens[1] == (77,)
    verdict = judge(model, of_tokens(clean, [*first[:3], 9, 60, *first[5:]], second, third), witness=None)
    assert verdict.diverging == ()
    assert f"embd holds the rows of tokens {first[3]} and {first[4]}, where 9 and 60 are stated" in verdict.dump[0].says


def test_a_fault_is_found_in_tensors_of_other_tokens(model: Model) -> None:
    trace, (touched, *_) = plant(model, PROMPT, ("gqa-map", 2), decode=2)
    verdict = judge(model, of_tokens(trace, PROMPT, [77], trace.steps[2].tokens))
    assert named(verdict) == ["other-tokens"]
    assert verdict.first is not None
    assert str(verdict.first.site) == touched


def test_an_embedding_that_the_step_did_not_go_on_with_is_one_of_the_dump(model: Model, clean: Trace) -> None:
    other = plant(model, [1, *range(200, 211)], decode=2)[0]
    tensors = {site: np.array((other if site == Site(0, None, "embd") else clean)[site]) for site in clean}
    verdict = judge(model, Trace.from_arrays(clean.steps, tensors, engine=clean.engine, model={}))
    assert verdict.diverging == ()
    assert "embd holds the rows of tokens 200, 201, 202, 203 and 7 more" in verdict.dump[0].says
    assert "went on with" in verdict.dump[0].says


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["token-offset", "token-shifted", "embed-scale"])
def test_a_wrong_lookup_is_the_engines(model: Model, bug: str) -> None:
    verdict = judge(model, plant(model, PROMPT, (bug, None), decode=2)[0])
    assert verdict.dump == ()
    assert [e.hypothesis for e in verdict.explanations] == [bug]


def garbled(trace: Trace, part: float = 1.0) -> Trace:
    """The trace with sums that are random numbers, by some part."""
    rng = np.random.default_rng(0)

    def change(site: Site, x: Array) -> Array:
        if site.point != "l_out":
            return x
        noise = rng.standard_normal(x.shape) * np.linalg.norm(x, axis=-1, keepdims=True) / x.shape[-1] ** 0.5
        return np.asarray((1 - part) * x + part * noise, x.dtype)

    return relaid(trace, change)


def test_sums_that_hold_anything_are_told_by_the_logits_that_are_right(model: Model, clean: Trace) -> None:
    verdict = judge(model, only(garbled(clean), "l_out", "result_output"))
    assert verdict.diverging == ()
    assert named(verdict) == ["not-what-was-used"]
    assert "l_out at every layer: your dump holds other numbers" in verdict.dump[0].says


@pytest.mark.slow
def test_logits_that_are_right_all_the_same_speak_against_the_dump(tmp_path: Path) -> None:
    model = open_model(in_blocks("Q4_1", tmp_path, n_layer=4))  # all its layers together round by as much as a fault
    right = plant(model, PROMPT, arithmetic=GGML_CPU, decode=2)[0]
    right = replace(right, engine=right.engine | {"arithmetic": "ggml-cpu"})
    verdict = judge(model, only(garbled(right, 0.3), "l_out", "result_output"), witness=right)
    assert named(verdict) == ["logits-agree"]
    assert verdict.diverging
    assert {site.point for site in verdict.dump[0].sites} == {"l_out"}
    assert set(verdict.dump[0].sites) <= {s.site for s in verdict.diverging}
    head = sentences(verdict)[0]
    assert head.startswith("Before any tensor, the dump: the engine's logits agree with those of planted")
    assert "although 12 recorded tensors differ" in head


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["norm-eps", "residual-missing", "gqa-map", "branch-missing", "norm-weight-missing"])
def test_logits_of_a_wrong_engine_speak_for_the_dump(model: Model, clean: Trace, bug: str) -> None:
    verdict = judge(model, plant(model, PROMPT, (bug, 3), decode=2)[0], witness=None)
    assert verdict.dump == ()
    assert verdict.diverging


def skipping(model: Model, layers: range) -> Trace:
    """A run of an engine that never runs some layers, which has no tensors of them."""

    def after(call: Call, y: Array) -> Array:
        return np.zeros_like(y) if call.layer in layers and call.point in ("attn_out", "ffn_out") else y

    return dump(model, PROMPT, after=after).without(lambda site: site.layer is not None and site.layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "at", "says"),
    [
        (range(2, 4), "result_norm", "it took l_out of layer 1: layers 2 to 3 never ran"),
        (range(3, 4), "result_norm", "it took l_out of layer 2: layer 3 never ran"),
        (range(1, 3), "attn_norm-3", "it took l_out of layer 0: layers 1 to 2 never ran"),
    ],
)
def test_layers_that_never_ran_are_named(model: Model, layers: range, at: str, says: str) -> None:
    verdict = judge(model, skipping(model, layers))
    assert verdict.dump == ()
    assert verdict.first is not None
    assert str(verdict.first.site) == at
    assert {(e.hypothesis, e.says) for e in verdict.explanations} == {("layers-not-run", says)}
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees


def test_layers_that_ran_and_were_not_recorded_are_no_finding(model: Model, clean: Trace) -> None:
    verdict = judge(model, clean.without(lambda site: site.layer in (2, 3)))
    assert verdict.verdict == "agrees"
    assert verdict.dump == ()


def test_a_step_that_repeats_another_of_the_same_token_is_told_by_its_position(model: Model) -> None:
    right = dump(model, PROMPT, later=[[5], [5]])
    assert dump_findings(model, right)[0] == ()
    verdict = judge(model, held_instead(right, another_step(2, 1)))
    assert named(verdict) == ["stale-step"]
    assert "though step 2 ran token 5 at position 13 and step 1 at position 12" in verdict.dump[0].says
    assert (verdict.diverging, verdict.exit_code) == ((), 4)


def test_an_engine_that_does_not_rotate_repeats_itself_where_all_tokens_are_the_same(model: Model) -> None:
    """Its keys are equal then at any position; its scores are more and more."""
    verdict = judge(model, dump(model, [5, 5, 5, 5], ("rope-none", None), later=[[5], [5]]))
    assert verdict.dump == ()
    assert str(verdict.diverging[0].site) == "Qcur_rope-0"


CLEAN: dict[str, tuple[Sequence[int], int]] = {
    "one token": ([1], 0),
    "one token and then the same": ([1], 2),
    "the same token again and again": ([5, 5, 5, 5], 3),
    "a prompt": (PROMPT, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("tokens", CLEAN)
@pytest.mark.parametrize("layers", [1, 4])
def test_a_right_dump_has_no_finding(
    tmp_path_factory: pytest.TempPathFactory, layers: int, tokens: str, arithmetic: str
) -> None:
    model = open_model(synthetic(tmp_path_factory.mktemp("right"), n_layer=layers, n_embd=64, n_head=4, n_head_kv=2,
                                 head_dim=16, n_ff=96))  # fmt: skip
    prompt, decode = CLEAN[tokens]
    trace, _ = plant(model, prompt, arithmetic=ARITHMETICS[arithmetic], decode=decode)
    for stored in (np.float32, np.float16):
        as_stored = relaid(trace, lambda _, x, stored=stored: x.astype(stored))
        for dumped in (as_stored, only(as_stored, "embd", "l_out"), relaid(as_stored, hugging_face)):
            assert dump_findings(model, dumped)[0] == ()
