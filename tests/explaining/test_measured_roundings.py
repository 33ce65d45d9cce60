"""What is measured of roundings within an operation: of an operand, and of a sum that is kept in few bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from builders.judging import judge
from builders.known_faults import plant_known
from builders.models import in_blocks
from firstdiff.hypotheses import Hypothesis, Scene
from firstdiff.hypotheses.planting import Planted
from firstdiff.hypotheses.where import Where
from firstdiff.model.engine import Model, open_model
from firstdiff.model.operations import Derived
from firstdiff.model.probe import Call
from firstdiff.verdict import Explanation, Verdict

Floats = npt.NDArray[Any]

TOKENS = tuple(random.Random(1).sample(range(60, 300), 24))
LAYER = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(in_blocks("Q8_0", tmp_path_factory.mktemp("model"), n_layer=6, biases=True))


def verdict_of(model: Model, point: str, make: Callable[[Call], Call], dtype: str) -> Verdict:
    def change(call: Call, _scene: Scene, _values: object) -> Call | None:
        return make(call) if call.point == point else None

    of = Hypothesis("planted", Where(None), "planted", "", change, rounds=True)
    made = plant_known(model, TOKENS, [Planted(of, LAYER)], "here", decode=1)
    assert made is not None
    return judge(model, made.trace(dtype))


def first(verdict: Verdict) -> Explanation:
    assert verdict.first is not None
    return next(e for e in verdict.explanations if verdict.first.site in e.sites)


def product(add_up: Callable[[Floats, Floats], Floats]) -> Callable[[Call], Call]:
    """A product whose sum is formed in another way: of activations [T, in] and a weight [out, in]."""

    def make(call: Call) -> Call:
        def computed(x: Floats, weight: Any, bias: Any = None, *, heads: Any = None, arithmetic: Any) -> Floats:
            y = add_up(x, weight.values()).astype(arithmetic.dtype)
            y = y if bias is None else y + bias.values()
            return y if heads is None else y.reshape(len(y), heads, -1)

        return replace(call, op=Derived(call.op, computed))

    return make


def f16(x: Floats) -> Floats:
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def bf16(x: Floats) -> Floats:
    """The nearest number whose lower 16 bits are 0, the even one of two."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


AddUp = Callable[[Floats, Floats], Floats]


def added_in(kept: Callable[[Floats], Floats], each: int, *, backwards: bool = False) -> AddUp:
    def add_up(x: Floats, w: Floats) -> Floats:
        total = np.zeros((len(x), len(w)), np.float32)
        starts = range(0, x.shape[1], each)
        for start in reversed(starts) if backwards else starts:
            part = x[:, start : start + each] @ w[:, start : start + each].T
            total = kept(total + part)
        return total

    return add_up


def lanes_in_f16(x: Floats, w: Floats) -> Floats:
    """A vector register of 4 lanes, each of which adds up every fourth product in f16."""
    total = np.zeros((len(x), len(w)), np.float32)
    for lane in range(4):
        total = f16(total + x[:, lane::4] @ w[:, lane::4].T)
    return total


def parts_in_bf16(x: Floats, w: Floats) -> Floats:
    """Each 64 inputs by themselves, in bf16, then all in float32: a kernel that writes its partial sums to memory."""
    parts = [x[:, s : s + 64] @ w[:, s : s + 64].T for s in range(0, x.shape[1], 64)]
    return sum((bf16(p) for p in parts), np.zeros(1, np.float32))


SUMS: dict[str, tuple[AddUp, str]] = {
    "each product": (added_in(f16, 1), "the sum is rounded to float16 after each product"),
    "32 inputs": (added_in(f16, 32), "the sum is rounded to float16 after each 32 inputs"),
    "bf16": (added_in(bf16, 64), "the sum is rounded to bfloat16 after each 64 inputs"),
    "from the last": (
        added_in(f16, 64, backwards=True),
        "the sum is rounded to float16 after each 64 inputs, from the last one to the first",
    ),
    "lanes": (
        lanes_in_f16,
        "the sum is rounded to float16 after each 64 inputs, which are taken at equal distances",
    ),
    "apart": (parts_in_bf16, "the sum of each 64 inputs is rounded to bfloat16 before these sums are added"),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_that_is_kept_in_few_bits_is_told_with_its_parts_and_their_order(model: Model, name: str) -> None:
    add_up, says = SUMS[name]
    verdict = verdict_of(model, "ffn_gate", product(add_up), "f32")
    e = first(verdict)
    assert (e.hypothesis, e.says) == ("measured-sum", says)
    assert verdict.counter_check is not None
    assert not verdict.counter_check.left


CODED: dict[str, Callable[[Floats], Floats]] = {
    "with one scale for each row": lambda x: _coded(x, x.shape[-1]),
    "with one scale for each 32 numbers of a row": lambda x: _coded(x, 32),
    "with one scale for each 128 numbers of a row": lambda x: _coded(x, 128),
}


def _coded(x: Floats, each: int) -> Floats:
    y = x.reshape(*x.shape[:-1], -1, each)
    scale = np.abs(y).max(-1, keepdims=True) / 127
    return (np.round(y / scale) * scale).reshape(x.shape).astype(x.dtype)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("scales", CODED)
def test_an_operand_in_codes_is_told_from_16_bits_too(model: Model, scales: str, dtype: str) -> None:
    """Of the numbers near the middle between two codes, the dump's 16 bits fall on the other one."""

    def make(call: Call) -> Call:
        return call.with_arguments(x=CODED[scales](np.array(call.argument("x"))))

    verdict = verdict_of(model, "ffn_gate", make, dtype)
    e = first(verdict)
    if dtype == "f16" and "32" in scales:  # what ggml does, but for a scale that it keeps in float16
        assert e.hypothesis == "other-arithmetic"
    else:
        assert (e.hypothesis, e.says) == (
            "measured-rounded",
            f"the operand x (ffn_norm) is rounded to int8 {scales}",
        )
    assert verdict.counter_check is not None
    assert not verdict.counter_check.left
