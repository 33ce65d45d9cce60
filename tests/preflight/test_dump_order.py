"""Dumps whose tensors are the right ones at another place, or before an operation: told from engines that do so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from builders.dump_faults import DUMP_FAULTS
from builders.hypotheses import plant
from builders.judging import judge
from builders.relaid import LAYOUTS, relaid
from builders.wrong_dumps import PROMPT, named
from firstdiff.dumps import Step, Trace
from firstdiff.model.arithmetic import F64, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import rms_norm
from firstdiff.model.probe import Call


def spoilt(trace: Trace, kind: str) -> Trace:
    made = DUMP_FAULTS[kind](trace)
    assert made is not None
    return made


KINDS = {
    "stale step": ("stale-step", "step 2 repeats step 1's tensors"),
    "steps exchanged": ("steps-exchanged", "the tensors of steps 1 and 2 were written under each other's number"),
    "rows in another order": ("rows-in-another-order", "in step 0, the rows of layers 1 and 3 are in another order"),
    "norm's input as its output": ("input-as-norm", "ffn_norm at every layer: your dump holds the norm's input"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_named_and_no_tensor_is_accused(model: Model, clean: Trace, kind: str) -> None:
    id_, says = KINDS[kind]
    verdict = judge(model, spoilt(clean, kind))
    assert verdict.diverging == ()
    assert named(verdict) == [id_]
    assert says in verdict.dump[0].says


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_beside_it_a_fault_of_the_engine_is_found(model: Model, kind: str) -> None:
    trace, (touched, *_) = plant(model, PROMPT, ("gqa-map", 0), decode=2)
    verdict = judge(model, spoilt(trace, kind))
    assert named(verdict) == [KINDS[kind][0]]
    assert verdict.first is not None
    assert str(verdict.first.site) == touched
    assert {e.hypothesis for e in verdict.explanations} == {"gqa-map"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["as transformers has it", "ggml's axis order"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_named_in_any_layout(model: Model, clean: Trace, kind: str, layout: str) -> None:
    verdict = judge(model, relaid(spoilt(clean, kind), LAYOUTS[layout]))
    assert verdict.diverging == ()
    assert named(verdict) == [KINDS[kind][0]]


@pytest.mark.slow
def test_exchanged_steps_are_judged_as_the_steps_that_they_are_of(model: Model) -> None:
    trace, touched = plant(model, PROMPT, ("token-offset", None), decode=2)
    verdict = judge(model, spoilt(trace, "steps exchanged"))
    assert named(verdict) == ["steps-exchanged"]
    assert [str(s.site) for s in verdict.diverging] == touched
    assert {e.hypothesis for e in verdict.explanations} == {"token-offset"}


@pytest.mark.slow
def test_steps_of_which_each_holds_another_are_told_one_by_one(model: Model) -> None:
    clean, _ = plant(model, PROMPT, decode=3)
    moved = {replace(s, step={1: 2, 2: 3, 3: 1}.get(s.step, s.step)): np.array(clean[s]) for s in clean}
    ordered = dict(sorted(moved.items(), key=lambda item: item[0].step))
    verdict = judge(model, Trace.from_arrays(clean.steps, ordered, engine=clean.engine, model={}))
    assert verdict.diverging == ()
    assert named(verdict) == ["steps-exchanged"]
    assert "those of step 3 under step 1, those of step 1 under step 2 and those of step 2" in verdict.dump[0].says


@pytest.mark.slow
def test_tokens_that_are_stated_in_another_order_are_no_exchanged_steps(model: Model, clean: Trace) -> None:
    """Positions tell: the engine ran these tokens in the order in which their tensors are numbered."""
    prompt, first, second = clean.steps
    stated = (prompt, Step(second.tokens, first.positions), Step(first.tokens, second.positions))
    verdict = judge(model, replace(clean, steps=stated))
    assert verdict.diverging == ()
    assert named(verdict) == ["other-tokens", "other-tokens"]


def test_rows_that_the_engine_exchanges_are_the_engines(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Call.compute

    def exchanged(call: Call, arithmetic: object) -> Array:
        x = run(call, arithmetic)  # type: ignore[arg-type]
        return x[::-1].copy() if call.op is rms_norm and call.layer == 1 and call.point == "attn_norm" else x

    with monkeypatch.context() as patched:
        patched.setattr(Call, "compute", exchanged)
        trace, _ = plant(model, PROMPT, arithmetic=F64, decode=2)
    verdict = judge(model, trace)
    assert verdict.dump == ()
    assert str(verdict.diverging[0].site) == "attn_norm-1"


def test_a_norm_that_the_engine_leaves_out_is_the_engines(model: Model) -> None:
    trace, (touched, *_) = plant(model, PROMPT, ("norm-missing", None), decode=2)
    verdict = judge(model, trace)
    assert verdict.dump == ()
    assert str(verdict.diverging[0].site) == touched


def test_rows_that_are_missing_at_the_end_are_told_by_the_embedding(model: Model, clean: Trace) -> None:
    verdict = judge(model, spoilt(clean, "rows missing"))
    assert verdict.diverging == ()
    assert any("10 rows, 12 tokens): the rows are taken for the first tokens'" in note for note in verdict.notes)
