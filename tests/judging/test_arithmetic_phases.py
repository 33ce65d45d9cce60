"""An arithmetic that differs by the number of tokens of a step is found and stated; each step is judged in its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from builders.judging import UNKNOWN, dump, judge
from builders.models import in_blocks
from firstdiff.model.arithmetic import F32, Arithmetic, arithmetic_named
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
        ("f32", "bf16-operands"), ("bf16-operands", "f32"), ("f32", "f16"), ("tf32", "f32"), ("f32+held=bf16", "bf16-operands+norms=bf16+embedding=bf16"),
        ("ggml-cpu", "f32+kv=f16"), ("f32+matrices=i8-row", "f16-operands+matrices=i8-row"),
    ],
)  # fmt: skip
def test_two_kernels_are_found_and_each_judged_at_its_own_floor(small: Model, few: str, many: str) -> None:
    verdict = judge(small, dump(small, PROMPT, kernels=kernels(few, many), later=((5,), CHUNK, (7,))))
    assert diverging(verdict) == set()
    print(verdict.arithmetic)
    names = [name.partition("+")[0] for name in (many, few)]
    assert verdict.arithmetic["linear"] == f"{names[0]} in steps of 12 tokens, {names[1]} in steps of 1 to 6 tokens"
    tight = [s for s in verdict.sites if s.step and s.floor is not None and not s.segment]
    assert [(str(s.site), s.floor) for s in tight if s.floor and s.floor > 2e-5] == []
