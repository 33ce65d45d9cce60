"""What an engine holds its weights in is found from its numbers, judged at the tight floor, and hides no fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.hypotheses import plant
from builders.judging import judge
from builders.relaid import stored_as
from builders.tiny_models import tiny
from firstdiff.dumps import Trace
from firstdiff.dumps.tensors import Held
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.engine import Model, open_model
from firstdiff.model.errors import ModelError
from firstdiff.model.holding import KINDS, held, variants
from firstdiff.verdict import Verdict

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import firstdiff.torch  # noqa: E402 - needs torch
from builders.hugging_face import held as held_by_torch  # noqa: E402
from builders.hugging_face import hold, hugging_face_model  # noqa: E402

PROMPT = [1, *range(300, 311)]
SHAPE = {"n_layer": 3, "n_embd": 256, "n_ff": 256}
MATRICES = ("_proj.weight",)

TORCH_KINDS = (
    "f16", "bf16", "f8_e4m3", "f8_e5m2", "f8_e4m3-row", "f8_e4m3-tensor", "f8_e5m2-row", "f8_e5m2-tensor",
    "i8-row", "i8-tensor", "i8-32", "i8-64", "i8-128",
)  # fmt: skip


@pytest.fixture(scope="module")
def q4_k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama", tmp_path_factory.mktemp("held"), file_type="Q4_K_M", **SHAPE)


@pytest.fixture(scope="module")
def model(q4_k: Path) -> Model:
    return open_model(q4_k)


def engine(path: Path, kind: str, *parts: str) -> Trace:
    """A trace of transformers' model in float32 whose weights, or some parts of them, are held in a kind."""
    return firstdiff.torch.record(hold(hugging_face_model(path), kind, *parts), PROMPT, decode=1)


def unstated(trace: Trace) -> Trace:
    return Trace.from_arrays(trace.steps, {s: trace[s] for s in trace}, engine={}, model={})


def diverging(verdict: Verdict) -> set[str]:
    return {str(s.site) for s in verdict.diverging}


@pytest.mark.parametrize("kind", TORCH_KINDS)
def test_rounding_to_a_kind_is_torchs(kind: str) -> None:
    x = (np.random.default_rng(0).standard_normal((24, 256)) * 0.05).astype(np.float32)
    ours = held(x, kind, float(np.abs(x).max()))
    np.testing.assert_array_equal(ours, held_by_torch(torch.tensor(x), kind).numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held_once_is_held(kind: str) -> None:
    x = (np.random.default_rng(0).standard_normal((24, 256)) * 0.05).astype(np.float32)
    x[3] = 0
    for way in ("", *variants(kind)):
        name = way or kind
        once = held(x, name, float(np.abs(x).max()))
        assert np.isfinite(once).all()
        assert not once[3].any()
        twice = held(once, name, float(np.abs(once).max()))
        np.testing.assert_allclose(twice, once, rtol=1e-6)


@pytest.mark.parametrize("name", ["f32+held=f17", "f32+held=f16-row", "f32+norms=i8-row", "f32+held=f16-of-bf16"])
def test_ways_of_holding_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"f17|f16-row|norms|f16-of"):
        arithmetic_named(name)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_an_engine_that_converts_all_weights_once_agrees_at_the_tight_floor(
    q4_k: Path, model: Model, kind: str
) -> None:
    verdict = judge(model, engine(q4_k, kind))
    assert diverging(verdict) == set()
    assert verdict.arithmetic["held"] == kind
    assert verdict.arithmetic["linear"] == verdict.arithmetic["norm"] == "f32"
    assert all(s.floor < 2e-5 for s in verdict.sites if s.floor is not None and not s.segment)


@pytest.mark.parametrize("kind", ["f8_e4m3-row", "f8_e5m2-tensor", "f8_e4m3", "i8-row", "i8-64"])
def test_an_engine_that_quantises_its_matrices_agrees_at_the_tight_floor(q4_k: Path, model: Model, kind: str) -> None:
    verdict = judge(model, engine(q4_k, kind, *MATRICES))
    assert diverging(verdict) == set()
    assert verdict.arithmetic["held"].startswith(f"{kind} (matrices)")
    assert all(s.floor < 2e-5 for s in verdict.sites if s.floor is not None and not s.segment)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "bf16", "f8_e4m3-row", "i8-row", "i8-tensor", "i8-32"])
@pytest.mark.parametrize(
    "fault", ["norm-weight-missing", "rope-base", "weight-transposed", "weight-swapped", "min-missing"]
)
def test_a_fault_is_found_whatever_weights_are_held_in(model: Model, kind: str, fault: str) -> None:
    trace, touched = plant(model, PROMPT, (fault, 1), arithmetic=arithmetic_named(f"f32+held={kind}"))
    verdict = judge(model, unstated(trace))
    assert [str(s.site) for s in verdict.diverging] == touched
    assert kind in verdict.arithmetic["held"]
    assert {e.hypothesis for e in verdict.explanations} == {fault}
    assert verdict.counter_check is not None
    assert verdict.counter_check.left == ()


def test_a_clean_engine_holds_its_weights_as_the_file_does(q4_k: Path, model: Model, tmp_path: Path) -> None:
    exact = tiny("llama", tmp_path, file_type="F16", **SHAPE)
    traces = {q4_k: "f32", exact: "bf16-operands"}
    for path, name in traces.items():
        of = open_model(path)
        verdict = judge(of, unstated(plant(of, PROMPT, arithmetic=arithmetic_named(name))[0]))
        assert diverging(verdict) == set()
        assert "held" not in verdict.arithmetic
    verdict = judge(model, engine(q4_k, "f16", "no part"))
    assert verdict.verdict == "agrees"
    assert "held" not in verdict.arithmetic


COMBINED = {
    "bf16-operands+matrices=f8_e4m3-row": ("bf16-operands", "f8_e4m3-row (matrices)"),
    "tf32+matrices=i8-row+norms=f16": ("tf32", "i8-row (matrices), f16 (norms)"),
    "f32+held=f16+kv=f16": ("f32", "f16"),
    "bf16+matrices=f8_e4m3-tensor": ("bf16", "f8_e4m3-tensor (matrices)"),
    "f32+matrices=f8_e4m3-row-of-bf16+norms=bf16": ("f32", "f8_e4m3-row-of-bf16 (matrices), bf16 (norms)"),
    "f32+matrices=i8-row-inverse+output=i8-row-inverse": ("f32", "i8-row-inverse (matrices, output)"),
    "f16-operands+matrices=i8-64-of-f16+norms=f16+embedding=f16": ("f16-operands", "i8-64-of-f16 (matrices)"),
    "f32+held=bf16+matrices=f32": ("f32", "bf16 (norms, output, embedding)"),
    "f32+embedding=i8-row": ("f32", "i8-row (embedding)"),
}


@pytest.mark.parametrize("name", COMBINED)
def test_what_weights_are_held_in_is_found_under_any_arithmetic_of_products(model: Model, name: str) -> None:
    trace, _ = plant(model, PROMPT, arithmetic=arithmetic_named(name))
    verdict = judge(model, unstated(trace))
    assert diverging(verdict) == set()
    linear, held_in = COMBINED[name]
    assert verdict.arithmetic["linear"] == linear
    assert set(held_in.split(", ")) <= set(verdict.arithmetic["held"].replace(" (weak evidence)", "").split(", ")) or (
        verdict.arithmetic["held"].startswith(held_in)
    )
    assert {s.tight for s in verdict.sites} == {None}


@pytest.mark.parametrize("kind", ["bf16", "f8_e4m3-row", "i8-row"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_a_dump_that_is_stored_narrowly_of_held_weights_agrees(q4_k: Path, model: Model, kind: str, dtype: str) -> None:
    trace = engine(q4_k, kind, *(() if kind == "bf16" else MATRICES))
    tensors = {site: Held(stored_as(np.array(trace[site]), dtype), dtype) for site in trace}
    assert diverging(judge(model, replace(trace, tensors=tensors))) == set()


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["f16", "i8-row"])
def test_biases_and_norms_of_heads_are_held_too(tmp_path: Path, arch: str, kind: str) -> None:
    path = tiny(arch, tmp_path, file_type="Q8_0", **SHAPE)
    parts = () if kind == "f16" else MATRICES
    verdict = judge(open_model(path), engine(path, kind, *parts))
    assert diverging(verdict) == set()
    assert verdict.arithmetic["held"].startswith(kind)


def test_biases_are_held_as_norms_are_where_matrices_have_codes(tmp_path: Path) -> None:
    path = tiny("qwen2", tmp_path, file_type="Q8_0", **SHAPE)
    made = hold(hold(hugging_face_model(path), "i8-row", *MATRICES), "bf16", "bias", "norm", "embed", "lm_head")
    verdict = judge(open_model(path), firstdiff.torch.record(made, PROMPT, decode=1))
    assert diverging(verdict) == set()
    assert verdict.arithmetic["held"] == "i8-row (matrices), bf16 (norms, output, embedding)"


@pytest.mark.parametrize("kind", ["bf16", "f8_e4m3-row"])
def test_a_fault_of_a_second_engine_is_named_beside_what_its_weights_are_held_in(
    q4_k: Path, model: Model, kind: str
) -> None:
    made = hold(hugging_face_model(q4_k), kind, *(() if kind == "bf16" else MATRICES))
    made.model.layers[1].post_attention_layernorm.variance_epsilon = 1e-2
    verdict = judge(model, firstdiff.torch.record(made, PROMPT, decode=1))
    assert diverging(verdict) == {"ffn_norm-1", "ffn_norm-1@1"}
    assert [e.hypothesis for e in verdict.explanations] == ["norm-eps"]
    assert verdict.arithmetic["held"].startswith(kind)
