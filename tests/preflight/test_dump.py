"""The dump before the engine: what a dump does not hold is named, no tensor is accused of it, faults are found too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import judge
from builders.models import synthetic
from builders.relaid import LAYOUTS, hugging_face, relaid
from builders.wrong_dumps import (
    BEFORE,
    BRANCH,
    NORMED,
    PAIR,
    Held,
    another_layer,
    another_point,
    another_step,
    held_instead,
)
from firstdiff.dumps import Site, Trace
from firstdiff.model.arithmetic import ARITHMETICS
from firstdiff.model.engine import Model, open_model
from firstdiff.preflight.dump import dump_findings
from firstdiff.reports.sentences import sentences
from firstdiff.verdict import Status, Verdict

PROMPT = [1, *range(300, 311)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("dump"), n_layer=4))


@pytest.fixture(scope="module")
def clean(model: Model) -> Trace:
    """A prompt and two more tokens, by a right engine."""
    return plant(model, PROMPT, decode=2)[0]


def only(trace: Trace, *points: str) -> Trace:
    return trace.without(lambda site: site.point not in points)


def named(verdict: Verdict) -> list[str]:
    return [finding.id for finding in verdict.dump]


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


@pytest.mark.parametrize("bug", ["residual-missing", "branch-missing", "residual-twice", "residual-scale"])
@pytest.mark.parametrize("layer", [None, 1])
def test_a_sum_that_the_engine_went_on_with_is_the_engines(model: Model, bug: str, layer: int | None) -> None:
    trace, (touched, *_) = plant(model, PROMPT, (bug, layer), decode=2)
    verdict = judge(model, trace)
    assert verdict.dump == ()
    assert verdict.first is not None
    assert str(verdict.first.site) == touched


@pytest.mark.parametrize("bug", ["weight-of-other-layer", "wrong-input", "cache-stale", "rope-position"])
def test_a_tensor_of_another_layer_or_step_that_the_engine_went_on_with_is_the_engines(model: Model, bug: str) -> None:
    verdict = judge(model, plant(model, PROMPT, (bug, None), decode=2)[0])
    assert verdict.dump == ()
    assert verdict.diverging


CLEAN: dict[str, tuple[Sequence[int], int]] = {
    "one token": ([1], 0),
    "one token and then the same": ([1], 2),
    "the same token again and again": ([5, 5, 5, 5], 3),
    "a prompt": (PROMPT, 3),
}


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
