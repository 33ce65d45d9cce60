"""Which arithmetic a candidate uses is found from its numbers; an unknown one hides no fault."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from builders.engines import recorded_by_llama_cpp
from builders.judging import NORMS, PRODUCTS, UNKNOWN, Before, attribute, bits, dump, judge, weights_off
from builders.models import SMOLLM2, in_blocks, synthetic
from firstdiff.dumps import Trace
from firstdiff.engines.llamacpp import Attention
from firstdiff.model.arithmetic import ARITHMETICS, F32, arithmetic_named
from firstdiff.model.engine import Model, open_model
from firstdiff.model.errors import ModelError
from firstdiff.model.rounding import round_to
from firstdiff.runs.replaying import replayed
from firstdiff.verdict import Status, Verdict

PROMPT = [1, *range(300, 311)]
TEXT = [1780, 314, 260, 3575, 282, 4649, 47, 198, 1, 500, 9690, 17]
LAYERS = 6

# Arithmetic, and what is found: linear, norm, attention, cache.
FOUND = {
    "f64": ("f32", "f32", "f32", "f32"),
    "f32": ("f32", "f32", "f32", "f32"),
    "ggml-cpu": ("ggml-cpu", "f32", "ggml-cpu", "f16"),
    "bf16": ("bf16", "bf16", "bf16", "bf16"),
    "f16": ("f16", "f16", "f16", "f16"),
    "tf32": ("tf32", "f32", "tf32", "f32"),
    "tf32-truncated": ("tf32-truncated", "f32", "tf32-truncated", "f32"),
    "f16-operands": ("f16-operands", "f32", "f16-operands", "f32"),
    "bf16-operands": ("bf16-operands", "f32", "bf16-operands", "f32"),
    "f32+products=f16-sums": ("f16-sums", "f32", "f32", "f32"),
    "f32+kv=f16": ("f32", "f32", "f32", "f16"),
    "f32+kv=bf16": ("f32", "f32", "f32", "bf16"),
    "f32+kv=q8_0": ("f32", "f32", "f32", "q8_0"),
    "f32+kv=q4_0": ("f32", "f32", "f32", "q4_0"),
    "f32+kv=q8_0-plain": ("f32", "f32", "f32", "q8_0-plain"),
    "f32+products=tf32+kv=bf16": ("tf32", "f32", "f32", "bf16"),
    "bf16-operands+keys=q8_0+values=f16": ("bf16-operands", "f32", "bf16-operands", "q8_0 keys, f16 values"),
    "ggml-cpu+keys=q8_0": ("ggml-cpu", "f32", "ggml-cpu", "q8_0 keys, f16 values"),
    "ggml-cpu+kv=bf16": ("ggml-cpu", "f32", "ggml-cpu", "bf16"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("fingerprint")
    return open_model(in_blocks("Q4_1", folder, n_layer=LAYERS, n_head=4, n_head_kv=2, head_dim=64))


def sure(verdict: Verdict) -> tuple[str, ...]:
    """What is found of each group, without how sure it is."""
    return tuple(
        verdict.arithmetic[group].removesuffix(" (weak evidence)") for group in ("linear", "norm", "attention", "cache")
    )


def wrong_sites(model: Model, trace: Trace) -> Verdict:
    """The verdict without a search for what explains the sites that diverge: most of them do."""
    return judge(model, trace, budget=0)


def diverging(verdict: Verdict) -> set[str]:
    return {str(s.site) for s in verdict.diverging}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUND)
def test_an_arithmetic_is_named_by_group_and_judged_at_its_floor(small: Model, name: str) -> None:
    verdict = judge(small, dump(small, PROMPT, arithmetic=arithmetic_named(name)))
    assert sure(verdict) == FOUND[name]
    assert diverging(verdict) == set()
    assert {s.tight for s in verdict.sites} == {None}
    stored = arithmetic_named(name).weights_and_results
    limit = 2e-6 if stored is None else ARITHMETICS[stored].floor
    assert all(s.floor <= limit for s in verdict.sites if s.floor is not None)


@pytest.mark.parametrize("name", ["ggml-cpu", "bf16", "tf32", "f16-operands", "f32+products=tf32+kv=bf16"])
def test_an_arithmetic_is_named_on_a_real_model(name: str, smollm2_model: Model) -> None:
    verdict = judge(smollm2_model, dump(smollm2_model, TEXT, arithmetic=arithmetic_named(name)))
    assert sure(verdict) == FOUND[name]
    assert verdict.arithmetic["linear"] == FOUND[name][0]  # by strong evidence
    assert diverging(verdict) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in FOUND if n not in ("bf16", "f16")])
def test_a_fault_in_one_layer_is_found_in_any_arithmetic(small: Model, name: str) -> None:
    arithmetic = arithmetic_named(name)
    verdict = judge(small, dump(small, PROMPT, ("min-missing", 3), ("gqa-map", 1), arithmetic=arithmetic))
    assert sure(verdict) == FOUND[name]
    products = {"Qcur", "Kcur", "Vcur", "attn_out", "ffn_gate", "ffn_up", "ffn_out"}
    wrong = {f"{point}-3" for point in products} | {"kq-1", "kqv_out-1"}
    assert diverging(verdict) == wrong | {f"{site}@1" for site in wrong}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f32", "tf32", "ggml-cpu"])
def test_an_arithmetic_is_known_by_the_sites_that_are_right_where_most_are_wrong(small: Model, name: str) -> None:
    faults = [("min-missing", layer) for layer in range(4)]  # of six layers
    verdict = judge(small, dump(small, PROMPT, *faults, arithmetic=arithmetic_named(name)))
    assert sure(verdict) == FOUND[name]
    assert {s.layer for s in verdict.diverging} == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_a_fault_is_found_where_results_are_stored_narrowly(small: Model, name: str) -> None:
    verdict = judge(small, dump(small, PROMPT, ("gqa-map", 1), arithmetic=arithmetic_named(name)))
    assert sure(verdict) == FOUND[name]
    assert diverging(verdict) == {"kq-1", "kqv_out-1", "kq-1@1", "kqv_out-1@1"}


@pytest.mark.llama
@pytest.mark.smollm2
@pytest.mark.parametrize(
    "attention", [Attention.of(flash=f, kv=k) for f in (False, True) for k in ("f16", "q8_0")], ids=str
)
def test_llama_cpps_own_options_are_found_from_its_numbers(
    tmp_path: Path, attention: Attention, smollm2_model: Model
) -> None:
    trace, _ = recorded_by_llama_cpp(SMOLLM2, tmp_path / "trace", TEXT, decode=1, attention=attention)
    verdict = judge(smollm2_model, Trace.from_arrays(trace.steps, {s: trace[s] for s in trace}, engine={}, model={}))
    cache_ = {(True, "q8_0"): "q8_0", (False, "q8_0"): "q8_0 keys, f16 values"}.get(
        (attention.flash, attention.keys), "f16"
    )
    assert sure(verdict) == ("ggml-cpu", "f32", "ggml-cpu+flash" if attention.flash else "ggml-cpu", cache_)
    assert diverging(verdict) == set()


@pytest.mark.slow
@pytest.mark.parametrize("engine", UNKNOWN)
def test_an_unknown_arithmetic_is_judged_at_the_level_of_its_layers(small: Model, engine: str) -> None:
    before, after = UNKNOWN[engine]
    verdict = judge(small, dump(small, PROMPT, before=before, after=after))
    assert diverging(verdict) == set()
    unknown = {group for group, says in verdict.arithmetic.items() if "level" in says}
    assert unknown
    for group in unknown:
        assert re.search(r"^(unknown|near to).*\(level \d\.\de-0\d, ceiling \de-0\d\)$", verdict.arithmetic[group])
    lifted = [s for s in verdict.sites if s.tight is not None]
    assert all(s.tight < s.floor <= 5e-2 for s in lifted if s.tight and s.floor)
    assert {s.op for s in verdict.sites} > {s.op for s in lifted} or "all" in engine


@pytest.mark.parametrize("engine", ["noise of 3e-3 on products", "activations of 5 bits", "sums in f16"])
def test_an_unknown_arithmetic_is_judged_so_on_a_real_model(engine: str, smollm2_model: Model) -> None:
    before, after = UNKNOWN[engine]
    verdict = wrong_sites(
        smollm2_model,
        dump(smollm2_model, TEXT, ("weight-swapped", 11), ("norm-weight-missing", 20), before=before, after=after),
    )
    assert "unknown" in verdict.arithmetic["linear"]
    assert {s.layer for s in verdict.diverging} == {11, 20}
    swapped = {*PRODUCTS, *NORMS} - {"ffn_out", "result_norm", "result_output"}  # weights of a shape that others have
    assert {s.point for s in verdict.diverging if s.layer == 11} == swapped


@pytest.mark.slow
@pytest.mark.parametrize("engine", UNKNOWN)
def test_a_fault_in_one_layer_stands_out_of_an_unknown_arithmetic(small: Model, engine: str) -> None:
    before, after = UNKNOWN[engine]
    verdict = wrong_sites(small, dump(small, PROMPT, ("min-missing", 3), ("gqa-map", 1), before=before, after=after))
    assert {s for s in diverging(verdict) if "@" not in s} == {
        "kq-1", "kqv_out-1", "Qcur-3", "Kcur-3", "Vcur-3", "attn_out-3", "ffn_gate-3", "ffn_up-3", "ffn_out-3",
    }  # fmt: skip


EVERYWHERE: dict[str, tuple[Before, set[str]]] = {
    "epsilon": (attribute("eps", 100.0, *NORMS), set(NORMS)),
    "norm weights": (weights_off(5e-3, *NORMS), set(NORMS)),
    "one norm's weights": (weights_off(5e-3, "ffn_norm"), {"ffn_norm"}),
    "rope base": (attribute("base", 1.002, "Qcur_rope", "Kcur_rope"), {"Qcur_rope", "Kcur_rope"}),
    "scale": (attribute("scale", 1.003, "kq_soft_max"), {"kq_soft_max"}),
    "ffn_out": (weights_off(1e-2, "ffn_out"), {"ffn_out"}),
    "gate and up": (weights_off(1e-2, "ffn_gate", "ffn_up"), {"ffn_gate", "ffn_up"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", EVERYWHERE)
@pytest.mark.parametrize("declared", [None, "f32"])
def test_a_small_fault_at_every_layer_is_no_arithmetic(small: Model, fault: str, declared: str | None) -> None:
    before, points = EVERYWHERE[fault]
    trace = dump(small, PROMPT, before=before)
    if declared is not None:
        trace = Trace.from_arrays(trace.steps, {s: trace[s] for s in trace}, engine={"arithmetic": declared}, model={})
    verdict = wrong_sites(small, trace)
    layered = {point for point in points if point != "result_norm"}
    first_step = {s for s in diverging(verdict) if "@" not in s} - {"result_norm"}
    assert first_step == {f"{point}-{layer}" for point in layered for layer in range(LAYERS)}


def test_wrong_weights_at_every_product_of_a_real_model_are_no_arithmetic(smollm2_model: Model) -> None:
    verdict = wrong_sites(smollm2_model, dump(smollm2_model, TEXT, before=weights_off(1e-2, *PRODUCTS)))
    assert {s.point for s in verdict.diverging} == set(PRODUCTS)


@pytest.mark.slow
def test_errors_above_the_ceiling_are_not_excused(small: Model) -> None:
    rng = np.random.default_rng(3)

    def after(call: object, y: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        loud = getattr(call, "point", "") in PRODUCTS
        return (y * (1 + 0.2 * rng.standard_normal(y.shape))).astype(np.float32) if loud else y

    verdict = wrong_sites(small, dump(small, PROMPT, after=after))
    assert {s.point for s in verdict.diverging} == set(PRODUCTS)
    assert "level" not in verdict.arithmetic["linear"]


@pytest.mark.slow
def test_a_declared_arithmetic_is_believed_where_it_fits_and_not_against_the_numbers(small: Model) -> None:
    traces = {name: dump(small, PROMPT, arithmetic=arithmetic_named(name)) for name in ("tf32", "ggml-cpu")}
    for name, trace in traces.items():
        for says in ("tf32", "ggml-cpu", "f32"):
            stated = Trace.from_arrays(trace.steps, {s: trace[s] for s in trace}, engine={"arithmetic": says}, model={})
            verdict = judge(small, stated)
            assert verdict.arithmetic["linear"] == name
            assert diverging(verdict) == set()
            assert [f"states the arithmetic {says}" in note for note in verdict.notes] == (
                [] if says == name else [True]
            )


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("float16", "'float16': there is none of that name"),
        ("f32+held=f17", "weights held in 'f17'"),
        ({"products": "f32"}, "is no name"),
        ("f32+held=i8-128", "rows of 64 numbers"),
        ("f32+kv=q8_0", "heads of 16 numbers"),
    ],
)
def test_a_stated_arithmetic_that_is_none_is_not_ignored_in_silence(tmp_path: Path, says: object, why: str) -> None:
    model = open_model(synthetic(tmp_path, n_layer=2, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=128))
    trace = dump(model, PROMPT)
    stated = Trace.from_arrays(trace.steps, {s: trace[s] for s in trace}, engine={"arithmetic": says}, model={})
    verdict = judge(model, stated)
    assert verdict.verdict == "agrees"
    (note,) = verdict.notes
    assert note.startswith("the arithmetic that the trace states was not taken, but found from its numbers: ")
    assert why in note


def test_a_stated_way_of_holding_weights_is_tried_first(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstdiff.runs.planning.fingerprint", lambda *_: pytest.fail("searched"))
    trace = dump(small, PROMPT, arithmetic=arithmetic_named("f32+held=f16"))
    stated = Trace.from_arrays(
        trace.steps, {s: trace[s] for s in trace}, engine={"arithmetic": "f32+held=f16"}, model={}
    )
    verdict = judge(small, stated)
    assert (verdict.verdict, verdict.notes, verdict.arithmetic["held"]) == ("agrees", (), "f16")


@pytest.mark.slow
def test_a_stated_arithmetic_that_other_numbers_contradict_is_told(small: Model) -> None:
    trace = dump(small, PROMPT, arithmetic=arithmetic_named("f32+held=bf16"))
    for says, notes in (
        ("f32", 1),
        ("f32+held=f16", 1),
        ("f32+matrices=bf16+norms=bf16+output=bf16+embedding=bf16", 0),
    ):
        stated = Trace.from_arrays(trace.steps, {s: trace[s] for s in trace}, engine={"arithmetic": says}, model={})
        verdict = judge(small, stated)
        assert diverging(verdict) == set()
        assert verdict.arithmetic["held"] == "bf16"
        assert len(verdict.notes) == notes
        assert all(
            f"states the arithmetic {says}, but its numbers are those of f32+held=bf16" in n for n in verdict.notes
        )


def outputs(trace: Trace) -> Trace:
    """A dump of the outputs of layers, and the logits."""
    return trace.without(lambda site: site.point not in ("l_out", "result_output"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["f32+held=bf16", "bf16-operands", "f32+matrices=i8-row", "tf32+held=bf16"])
def test_the_arithmetic_of_outputs_of_layers_alone_is_found_from_whole_layers(small: Model, name: str) -> None:
    arithmetic = arithmetic_named(name)
    trace = outputs(dump(small, PROMPT, arithmetic=arithmetic))
    assert replayed(small, trace).found.arithmetic == arithmetic
    assert diverging(judge(small, trace)) == set()
    spoilt = judge(small, outputs(dump(small, PROMPT, ("norm-weight-missing", 3), arithmetic=arithmetic)))
    assert diverging(spoilt) == {"l_out-3", "l_out-3@1"}


def test_few_sites_are_weak_evidence(small: Model) -> None:
    trace = dump(small, PROMPT, arithmetic=arithmetic_named("tf32"))
    few = trace.without(lambda s: s.step > 0 or (s.point, s.layer) not in {("attn_norm", 1), ("Qcur", 1)})
    verdict = judge(small, few)
    assert verdict.arithmetic["linear"] == "tf32 (weak evidence)"
    assert [str(s.site) for s in verdict.sites if s.status is Status.AGREES and not s.segment] == ["Qcur-1"]


def test_rounding_to_tf32_is_that_of_the_instruction() -> None:
    one = np.array([1, 1 + 2**-11, 1 + 2**-11 + 2**-20, 1 + 3 * 2**-11, -1 - 2**-11, np.inf, 0], np.float32)
    rounded = round_to(one, "tf32")
    np.testing.assert_array_equal(rounded, [1, 1 + 2**-10, 1 + 2**-10, 1 + 2**-9, -1 - 2**-10, np.inf, 0])
    np.testing.assert_array_equal(round_to(one, "tf32-truncated")[:4], [1, 1, 1, 1 + 2**-10])
    assert np.isnan(round_to(np.array([np.nan], np.float32), "tf32")).all()
    np.testing.assert_array_equal(bits(one[:5], 10), rounded[:5])


@pytest.mark.parametrize("name", ["f33", "f32+kv=q9", "ggml-cpu+flush", "f32+speed=f16", "f32+flash=x"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="arithmetic"):
        arithmetic_named(name)


def test_a_clean_float32_trace_is_not_searched(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firstdiff.runs.planning.fingerprint", lambda *_: pytest.fail("searched"))
    assert judge(small, dump(small, PROMPT, arithmetic=F32)).verdict == "agrees"
    trace = dump(small, PROMPT, ("scale-missing", 2), arithmetic=arithmetic_named("ggml-cpu"))
    stated = Trace.from_arrays(trace.steps, {s: trace[s] for s in trace}, engine={"arithmetic": "ggml-cpu"}, model={})
    assert diverging(judge(small, stated)) == {"kq_soft_max-2", "kq_soft_max-2@1"}


@pytest.mark.slow
def test_an_arithmetic_that_overflows_where_the_engine_does_not_is_not_taken(small: Model) -> None:
    verdict = judge(small, dump(small, PROMPT, ("block-scale-missing", None)))
    assert sure(verdict)[0] == "f32"
    assert {e.hypothesis for e in verdict.explanations} == {"block-scale-missing"}
