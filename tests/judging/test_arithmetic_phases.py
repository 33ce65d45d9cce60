"""An arithmetic that differs by the number of tokens of a step is found and stated; each step is judged in its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest

from builders.judging import NORMS, UNKNOWN, Before, Floats, attribute, dump, judge, weights_off
from builders.models import in_blocks
from builders.tiny_models import tiny
from firstdiff.model.arithmetic import Arithmetic, arithmetic_named
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.verdict import Verdict

PROMPT = [1, *range(300, 311)]
CHUNK = tuple(range(260, 266))
LAYERS = 6


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("phases")
    return open_model(in_blocks("Q4_1", folder, n_layer=LAYERS, n_head=4, n_head_kv=2, head_dim=64))


def kernels(few: str, many: str, *, least: int = 8) -> Callable[[int], Arithmetic]:
    """An engine that has one kernel for few tokens and another from a number of tokens on."""
    return lambda tokens: arithmetic_named(many if tokens >= least else few)


def diverging(verdict: Verdict) -> set[str]:
    return {str(s.site) for s in verdict.diverging}


@pytest.mark.parametrize(
    ("few", "many"),
    [
        ("f32", "bf16-operands"), ("bf16-operands", "f32"), ("f32", "f16"), ("tf32", "f32"),
        ("f32+held=bf16", "bf16-operands+norms=bf16+embedding=bf16"),
        ("ggml-cpu", "f32+kv=f16"), ("f32+matrices=i8-row", "f16-operands+matrices=i8-row"),
    ],
)  # fmt: skip
def test_two_kernels_are_found_and_each_judged_at_its_own_floor(small: Model, few: str, many: str) -> None:
    verdict = judge(small, dump(small, PROMPT, kernels=kernels(few, many), later=((5,), CHUNK, (7,))))
    assert diverging(verdict) == set()
    names = [name.partition("+")[0] for name in (many, few)]
    assert verdict.arithmetic["linear"] == f"{names[0]} in steps of 12 tokens, {names[1]} in steps of 1 to 6 tokens"
    tight = [s for s in verdict.sites if s.step and s.floor is not None and not s.segment]
    assert [(str(s.site), s.floor) for s in tight if s.floor and s.floor > 2e-5] == []


def test_a_fault_is_found_in_the_arithmetic_of_its_step(small: Model) -> None:
    of = kernels("f32", "bf16-operands")
    verdict = judge(small, dump(small, PROMPT, ("rope-base", 3), ("min-missing", 1), kernels=of, later=((5,), CHUNK)))
    products = {"Qcur", "Kcur", "Vcur", "attn_out", "ffn_gate", "ffn_up", "ffn_out"}
    wrong = {f"{point}-1" for point in products} | {"Qcur_rope-3", "Kcur_rope-3"}
    steps = {f"{site}@{step}" if step else site for site in wrong for step in range(3)}
    assert diverging(verdict) == steps - {"Qcur_rope-3@0"}
    assert {e.hypothesis for e in verdict.explanations} == {"rope-base", "min-missing"}
    assert verdict.counter_check is not None
    assert verdict.counter_check.left == ()


def at_decode(before: Before) -> Before:
    return lambda call: before(call) if call.step else call


@pytest.mark.parametrize(
    ("fault", "points"),
    [
        (attribute("eps", 100.0, *NORMS), {*NORMS}),
        (weights_off(5e-3, "ffn_norm"), {"ffn_norm"}),
        (weights_off(1e-2, "ffn_gate", "ffn_up"), {"ffn_gate", "ffn_up"}),
    ],
)
def test_a_fault_in_decode_only_is_no_other_arithmetic(small: Model, fault: Before, points: set[str]) -> None:
    verdict = judge(small, dump(small, PROMPT, before=at_decode(fault), later=((5,), (6,))))
    assert {s.point for s in verdict.diverging} - {"result_norm"} == points - {"result_norm"}
    assert {s.step for s in verdict.diverging} == {1, 2}
    assert verdict.arithmetic["linear"] == "f32"


@pytest.mark.parametrize("engine", ["noise of 3e-3 on products", "activations of 5 bits"])
@pytest.mark.parametrize("steps", [(0,), (1, 2)])
def test_an_arithmetic_that_is_unknown_in_some_steps_is_judged_at_its_level_there_only(
    small: Model, engine: str, steps: tuple[int, ...]
) -> None:
    before, after = UNKNOWN[engine]

    def some_before(call: Call) -> Call:
        return before(call) if call.step in steps else call

    def some_after(call: Call, y: Floats) -> Floats:
        return after(call, y) if call.step in steps else y

    verdict = judge(small, dump(small, PROMPT, before=some_before, after=some_after, later=((5,), (6,))))
    assert diverging(verdict) == set()
    assert {s.site.step for s in verdict.sites if s.tight is not None} == set(steps)
    assert "level" in verdict.arithmetic["linear"]


def test_steps_of_the_other_kernel_need_not_be_the_first(small: Model) -> None:
    later = ((5,), (6,), CHUNK, (7,), PROMPT)
    verdict = judge(small, dump(small, [1, 300], kernels=kernels("f32", "tf32", least=6), later=later))
    assert diverging(verdict) == set()
    assert verdict.arithmetic["linear"] == "f32 in steps of 1 to 2 tokens, tf32 in steps of 6 to 12 tokens"


def test_a_second_engine_with_a_kernel_for_prompts_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import firstdiff.torch
    from builders.hugging_face import hugging_face_model

    path = tiny("llama", tmp_path, file_type="Q4_K_M", n_layer=3, n_ff=256)
    made = hugging_face_model(path)

    def linear(self: Any, x: Any) -> Any:
        weight = self.weight
        if x.shape[-2] > 1:
            x, weight = (of.to(torch.bfloat16).float() for of in (x, weight))
        return torch.nn.functional.linear(x, weight)

    for module in made.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = MethodType(linear, module)
    verdict = judge(open_model(path), firstdiff.torch.record(made, PROMPT, decode=2))
    assert diverging(verdict) == set()
    assert verdict.arithmetic["linear"] == "bf16-operands in steps of 12 tokens, f32 in steps of 1 token"
