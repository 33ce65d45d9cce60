"""Describing where an error is, what is not a number, and numbers that obey no rule, of which nothing more is said."""

from __future__ import annotations

import json
import time
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from builders.described import (
    CAUSAL,
    F16,
    F32,
    FLAT,
    HEADED,
    SCORES,
    SHAPES,
    Floats,
    Setting,
    every_axis,
    every_case,
    slices,
)
from firstdiff.dumps.points import plural, token_axis
from firstdiff.explaining.describing.describe import describe

# Where it is


@every_axis
def test_a_subset_that_is_wrong_is_named(case: Setting, name: str) -> None:
    wrong = case.reference
    part = slices(wrong, case.axes, name)[3:5]
    part += np.random.default_rng(4).standard_normal(part.shape) * 20
    first = case.findings(wrong)[0]
    assert (first.id, first.says) == ("subset", f"only {plural(name)} 3-4 are wrong, the rest right")
    assert first.share == pytest.approx(1, abs=1e-4)


def test_places_on_several_axes_are_named_together() -> None:
    case = Setting(HEADED, half=False)
    wrong = case.reference
    wrong[4:7, 2] += np.random.default_rng(4).standard_normal((3, 16))
    assert case.findings(wrong)[0].says == "only head 2 of tokens 4-6 is wrong, the rest right"
    wrong[4:7, 2] = 0
    assert case.findings(wrong)[0].says == "head 2 of tokens 4-6 is zero"


def test_regular_subsets_are_named() -> None:
    case = Setting(FLAT, half=False)
    noise = np.random.default_rng(4).standard_normal((12, 96)) * 20
    i = np.arange(96)
    for mask, says in (
        (i % 4 == 1, "only every 4th of the features from 1 are wrong, the rest right"),
        (i % 16 >= 8, "only features 8-15 of each 16 are wrong, the rest right"),
        (i // 32 == 1, "only features 32-63 are wrong, the rest right"),
    ):
        assert case.findings(case.reference + noise * mask)[0].says == says


@every_case
def test_an_error_that_grows_with_position_is_found(case: Setting) -> None:
    x = case.reference
    noise = np.random.default_rng(6).standard_normal(x.shape) * np.abs(x).mean(
        (*{0, 1, 2} - {token_axis(case.axes)},)[: x.ndim - 1], keepdims=True
    )
    wrong = x + noise * case.along(case.token, 0.03 * np.arange(12))
    found = {f.id: f for f in case.findings(wrong)}
    assert found["grows-with-position"].says.endswith("token 0 is right")
    assert found["grows-with-position"].values["ratio"] > 3
    assert next(iter(found)) in ("grows-with-position", "subset")


# Not a number


def test_not_a_number_comes_first_with_what_went_in() -> None:
    case = Setting(FLAT, half=False)
    wrong = case.reference
    wrong[3, 5:7] = np.nan, np.inf
    went_in = np.full((12, 40), 81000.0)
    first, *rest = case.findings(wrong, inputs=[went_in, np.arange(3)])
    assert first.id == "not-finite"
    assert first.says == (
        "1 NaN and 1 infinite of 1,152 values, the first at token 3, feature 5; only in tokens 3; "
        "its input is finite, the largest 8.1e+04, beyond float16's 65504"
    )
    assert rest == []
    went_in[3] = np.nan
    assert case.findings(wrong, inputs=[went_in])[0].says.endswith("its input holds 40 NaN already")
    assert case.findings(wrong, inputs=[np.zeros((12, 4))])[0].says.endswith("1 of 1 rows all zero")


def test_hidden_scores_are_no_infinities_that_went_in() -> None:
    wrong, went_in = np.full((6, 12, 12), 1 / 12), np.where(CAUSAL, 100.0, -np.inf) * np.ones((6, 1, 1))
    wrong[1, 5] = np.nan
    (first, *_) = describe(wrong, np.full_like(wrong, 1 / 12), axes=SCORES, floor=F32, inputs=[went_in])
    assert first.says == (
        "12 NaN of 864 values, the first at head 1, query 5, key 0; only in queries 5; its input is finite, "
        "the largest 1e+02, beyond the 88.7 up to which float32 holds an exponential"
    )


def test_what_overflows_float16_is_told() -> None:
    x = Setting(FLAT, half=False).reference * 2000
    with np.errstate(over="ignore"):
        wrong = x.astype(np.float16)
    first, second = describe(wrong, x, axes=FLAT, floor=F16)
    assert (first.id, second.id) == ("saturated", "not-finite")
    assert first.says.startswith("infinite wherever the reference is beyond float16's 65504 (")


# No rule


@every_case
def test_what_is_at_the_floor_is_not_described(case: Setting) -> None:
    assert case.findings(case.reference) == ()


def test_a_copy_of_some_tokens_and_equal_inputs_say_nothing() -> None:
    case = Setting(FLAT, half=False)
    wrong = Setting(FLAT, half=False, seed=5).reference
    rotated = np.concatenate([wrong[:1], Setting(FLAT, half=False, seed=6).reference[1:]])
    assert [f.id for f in case.findings(wrong, others=[("Qcur_rope-0", rotated)])] == ["unlike"]
    x, y = case.reference, wrong.copy()
    x[3], y[3] = x[2], y[2]  # the same token twice
    found = describe(y, x, axes=FLAT, floor=F32, others=[("embd@1", y[3:4])])
    assert [f.id for f in found] == ["unlike"]


@every_case
def test_unrelated_numbers_are_unlike_and_nothing_else(case: Setting) -> None:
    for seed in range(20):
        other = Setting(case.axes, half=False, seed=100 + seed).reference
        (only,) = case.findings(other)
        assert only.id == "unlike"
        assert abs(only.values["cosine"]) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8), (1, 96), (2, 64), (3, 8), (8, 1), (40, 4)])
@pytest.mark.parametrize("floor", [1e-6, 1e-3, 2e-2, 0.3])
def test_few_unrelated_numbers_are_unlike_and_nothing_else(shape: tuple[int, int], floor: float) -> None:
    for seed in range(30):
        c, r = np.random.default_rng(seed).standard_normal((2, *shape))
        assert {f.id for f in describe(c, r, axes=FLAT, floor=floor)} <= {"unlike"}


@every_case
@pytest.mark.parametrize("times", [1.2, 3, 30])
def test_noise_above_the_floor_obeys_no_rule(case: Setting, times: float) -> None:
    for seed in range(1000, 1005):
        noise = np.random.default_rng(seed).standard_normal(SHAPES[case.axes])
        floor = F16 if case.half else F32
        x = case.reference
        size = np.sqrt((x**2).mean(tuple(i for i, a in enumerate(case.axes) if a != case.token), keepdims=True))
        found = {f.id for f in case.findings(x + noise * size * floor * times)}
        assert found <= {"unlike", "subset"}


def massive() -> Floats:
    """Twelve tokens in which one dim is a thousand times larger than the others, as residual streams have them."""
    x = Setting(FLAT, half=False).reference
    x[:, 40] = 1000 * np.abs(x).max(1)
    return x


def test_one_massive_dim_does_not_speak_for_the_others() -> None:
    x = massive()
    wrong = x * np.where(np.arange(96) == 40, 1.01, 1)
    found = describe(wrong, x, axes=FLAT, floor=F32)
    assert found[0].says == "feature 40 is 1.01 times the expected"
    wrong = x.copy()
    wrong[:, [40, 41]] = x[:, [41, 40]]
    assert describe(wrong, x, axes=FLAT, floor=F32)[0].says == "features 40 and 41 are exchanged"
    wrong[:, 7] += np.random.default_rng(1).standard_normal(12) * 1000
    assert describe(wrong, x, axes=FLAT, floor=F32)[0].id != "permuted"


def test_what_float16_takes_from_a_massive_dim_is_not_called_wrong() -> None:
    x = massive() / 10
    wrong = x.copy()
    wrong[:, 3] += 1000
    found = describe(wrong.astype(np.float16), x, axes=FLAT, floor=F16)
    assert found[0].id in ("subset", "constant-offset")
    assert "40" not in found[0].says


def test_next_to_nothing_is_no_multiple_of_the_reference() -> None:
    x = Setting(FLAT, half=False).reference
    found = describe(1e-9 * np.random.default_rng(1).standard_normal(x.shape), x, axes=FLAT, floor=F32)
    assert [f.id for f in found] == ["unlike"]


# Whatever the numbers


@every_case
def test_findings_are_json_and_warn_of_nothing(case: Setting) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wrong in (case.reference * 2, np.zeros_like(case.reference), np.abs(case.reference)):
            for finding in case.findings(wrong):
                json.dumps(finding.values, allow_nan=False)


numbers = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, -1.0, 65504.0])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[tuple[str, ...], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    axes = draw(st.sampled_from([FLAT, HEADED, SCORES]))
    shape = draw(array_shapes(min_dims=len(axes), max_dims=len(axes), min_side=1, max_side=6))
    c, r = (draw(arrays(np.float32, shape, elements=numbers)) for _ in range(2))
    return axes, c, r, draw(arrays(np.bool_, shape))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(pairs(), st.sampled_from([0.0, 1e-7, 1e-3, 0.3]), st.booleans())
def test_no_numbers_at_all_make_it_fail(pair: Any, floor: float, hidden: bool) -> None:  # noqa: FBT001
    axes, c, r, mask = pair
    found = describe(
        c,
        r,
        axes=axes,
        floor=floor,
        seen=mask if hidden else None,
        inputs=[c, r],
        others=[("embd", r), ("kq", mask)],
    )
    assert len(found) <= 5
    assert all(0 <= f.share <= 1 and f.says for f in found)
    json.dumps([f.values for f in found], allow_nan=False)


@pytest.mark.slow
def test_logits_are_described_in_half_a_second() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((40, 49152)).astype(np.float32)
    others = [(f"logits@{i}", rng.standard_normal((1, 49152)).astype(np.float32)) for i in range(4)]
    for wrong in (rng.standard_normal(r.shape).astype(np.float32), r[:, ::-1], r * 2, np.roll(r, 1, 0)):
        start = time.process_time()
        assert describe(wrong, r, axes=FLAT, floor=1e-6, others=others)
        assert time.process_time() - start < 2.5  # 0.5 s on an idle machine: a shared one gets five times as much
