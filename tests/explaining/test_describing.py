"""Describing an error that no hypothesis explains: each rule is planted on random numbers, and found first."""

from __future__ import annotations

import json
import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from firstdiff.dumps.points import axes_of, plural, token_axis
from firstdiff.explaining.describing.describe import Finding, describe

Floats = npt.NDArray[np.float64]

FLAT, HEADED, SCORES = axes_of("l_out"), axes_of("Qcur"), axes_of("kq")
SHAPES = {FLAT: (12, 96), HEADED: (12, 6, 16), SCORES: (6, 12, 12)}
CAUSAL = np.tril(np.ones((12, 12), np.bool_))
NOISE, F32, F16 = 1e-7, 1e-6, 1.25e-3


@dataclass(frozen=True)
class Setting:
    """Random numbers of one axes form as an engine records them."""

    axes: tuple[str, ...]
    half: bool
    seed: int = 0

    def __str__(self) -> str:
        return f"{'-'.join(self.axes)}-{'f16' if self.half else 'f32'}"

    @property
    def reference(self) -> Floats:
        """Tokens of different size, the first one far larger, as residual streams are."""
        x = np.random.default_rng(self.seed).standard_normal(SHAPES[self.axes])
        size = np.geomspace(50, 0.5, 12)
        return x * self.along(self.token, size)

    @property
    def token(self) -> str:
        """The axis of tokens."""
        return self.axes[token_axis(self.axes)]

    @property
    def seen(self) -> npt.NDArray[np.bool_] | None:
        return CAUSAL if self.axes == SCORES else None

    def recorded(self, x: Floats) -> npt.NDArray[Any]:
        """What is hidden is minus infinity; what is recorded is rounded."""
        rng = np.random.default_rng(self.seed + 1)
        stored = x.astype(np.float16) if self.half else x * (1 + NOISE * rng.standard_normal(x.shape))
        return np.where(CAUSAL, stored, -np.inf) if self.axes == SCORES else stored

    def findings(self, wrong: Floats, **more: Any) -> tuple[Finding, ...]:
        floor = F16 if self.half else F32
        return describe(self.recorded(wrong), self.reference, axes=self.axes, floor=floor, seen=self.seen, **more)

    def along(self, name: str, values: Any) -> Floats:
        """Shape numbers for broadcasting along an axis."""
        return np.reshape(values, [-1 if axis == name else 1 for axis in self.axes])


CASES = [Setting(axes, half) for axes in SHAPES for half in (False, True)]
ROWS_OF_THEIR_OWN = [case for case in CASES if case.axes != SCORES]  # a row of scores sees keys of its own
ALONG = [(case, name) for case in CASES for name in case.axes if name != "key"]
PERMUTED = [(case, name) for case, name in ALONG if (case.axes, name) != (SCORES, "query")]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_row = pytest.mark.parametrize("case", ROWS_OF_THEIR_OWN, ids=str)
every_axis = pytest.mark.parametrize(("case", "name"), ALONG, ids=str)


def slices(x: Floats, axes: tuple[str, ...], name: str) -> Floats:
    """Slices along an axis first: writing to them writes to x."""
    return np.moveaxis(x, axes.index(name), 0)


@every_case
def test_what_is_at_the_floor_is_not_described(case: Setting) -> None:
    assert case.findings(case.reference) == ()


@every_case
def test_one_factor_is_found_and_named(case: Setting) -> None:
    (first, *rest) = case.findings(case.reference * 2.5)
    assert (first.id, first.says, rest) == ("constant-factor", "every value is 2.5 times the expected", [])
    assert first.values["factors"] == pytest.approx([2.5], rel=1e-3)
    n = SHAPES[case.axes][-1]
    says = case.findings(case.reference * math.sqrt(n))[0].says
    assert says.startswith("every value is ")
    assert f"(sqrt({n} {plural(case.axes[-1])})) times the expected" in says or math.isqrt(n) ** 2 == n
    assert "(1/8) times" in case.findings(case.reference / 8)[0].says


@every_axis
def test_a_factor_of_some_slices_is_found(case: Setting, name: str) -> None:
    wrong = case.reference
    slices(wrong, case.axes, name)[[3, 5]] *= 4
    first = case.findings(wrong)[0]
    assert first.id == "constant-factor"
    assert first.says.replace(" (sqrt(16 head_dims))", "") == f"{plural(name)} 3, 5 are 4 times the expected"


@every_axis
def test_a_factor_of_each_slice_is_found(case: Setting, name: str) -> None:
    n = SHAPES[case.axes][case.axes.index(name)]
    first = case.findings(case.reference * case.along(name, np.linspace(1.5, 3, n)))[0]
    assert (first.id, first.values["per"]) == ("constant-factor", [name])
    assert first.says.startswith(f"each {name} is multiplied by a factor of its own, 1.5")


@every_case
def test_one_offset_is_found(case: Setting) -> None:
    (first, *rest) = case.findings(case.reference + 3)
    assert (first.id, rest) == ("constant-offset", [])
    assert first.values["least"] == pytest.approx(3, rel=0.02 if case.half else 1e-5)


@every_row
def test_a_missing_bias_is_an_offset_of_each_channel(case: Setting) -> None:
    bias = np.random.default_rng(9).standard_normal(SHAPES[case.axes][1:])
    first = case.findings(case.reference + 30 * bias)[0]
    assert (first.id, first.values["per"]) == ("constant-offset", list(case.axes[1:]))


@every_case
def test_zeros_are_found(case: Setting) -> None:
    assert case.findings(np.zeros_like(case.reference))[0].says == "every value is zero"
    wrong = case.reference
    slices(wrong, case.axes, case.token)[3:6] = 0
    first = case.findings(wrong)[0]
    assert (first.id, first.says) == ("zeros", f"{plural(case.token)} 3-5 are zero")
    first = case.findings(np.maximum(case.reference, 0))[0]
    assert (first.id, first.says) == ("zeros", "zero wherever the reference is negative")


@every_case
def test_signs_are_found(case: Setting) -> None:
    first, *_ = case.findings(np.abs(case.reference))
    assert (first.id, first.says.partition(" values ")[2]) == ("sign", "have the wrong sign")
    wrong = case.reference
    slices(wrong, case.axes, case.axes[-1])[1::2] *= -1
    first = case.findings(wrong)[0]
    assert first.id == "sign"
    n = SHAPES[case.axes][-1]
    assert first.says == f"every 2nd of the {plural(case.axes[-1])} from 1 have the wrong sign" or n <= 12
    assert case.findings(-case.reference)[0].says == "every value has the wrong sign"


@every_case
def test_clipping_is_found(case: Setting) -> None:
    first = case.findings(np.clip(case.reference, -20, 20))[0]
    assert first.id == "saturated"
    assert first.says.startswith("clipped at ±20")
    first = case.findings(np.minimum(case.reference, 20))[0]
    assert (first.id, first.says.partition(",")[0]) == ("saturated", "clipped at 20")


@every_case
def test_another_recorded_tensor_is_found(case: Setting) -> None:
    other = Setting(case.axes, half=False, seed=5).reference
    named = [("l_out-2", np.zeros((3, 3))), ("l_out-3", other * 1.01), ("l_out-4", other)]
    first, *_ = case.findings(other, others=named)
    assert (first.id, first.says) == ("equals-other", "equals l_out-4")
    first = case.findings(other, inputs=[other])[0]
    assert (first.id, first.says) == ("equals-other", "equals its own input")


@every_row
def test_rows_of_another_step_are_found(case: Setting) -> None:
    other = np.random.default_rng(3).standard_normal((3, *SHAPES[case.axes][1:]))
    wrong = case.reference
    wrong[7] = other[2]
    first = case.findings(wrong, others=[("embd@1", other)])[0]
    assert (first.id, first.says) == ("equals-other", "token 7 equals token 2 of embd@1")


def test_merged_heads_are_the_same_rows() -> None:
    case = Setting(HEADED, half=False)
    other = np.random.default_rng(3).standard_normal((12, 96))
    assert case.findings(other.reshape(12, 6, 16), others=[("Vcur-1", other)])[0].says == "equals Vcur-1"


@every_row
def test_a_wrong_row_of_the_reference_is_found(case: Setting) -> None:
    wrong = case.reference
    wrong[1:] = case.reference[:-1]
    says = "tokens 1-11 equal tokens 0-10 of the reference"
    first = case.findings(wrong)[0]
    assert (first.id, first.says) == ("equals-other", says)
    wrong = case.reference
    wrong[4:] = wrong[2]
    assert case.findings(wrong)[0].says == "tokens 4-11 all equal token 2 of the reference"


@pytest.mark.parametrize(("case", "name"), PERMUTED, ids=str)
def test_permutations_are_found_and_named(case: Setting, name: str) -> None:
    axis, n = case.axes.index(name), SHAPES[case.axes][case.axes.index(name)]
    i = np.arange(n)
    halves = np.concatenate([i[::2], i[1::2]])
    swapped = i.copy()
    swapped[[1, 4]] = 4, 1
    for order, says in (
        (i[::-1], "are in reverse order"),
        ((i + 4) % n, "are rotated, 4 first"),
        (halves, "are the even ones first, then the odd ones (half-split in place of interleaved)"),
        (np.argsort(halves), "are taken from the two halves in turn (interleaved in place of half-split)"),
        (i ^ 1, "are neighbours exchanged within each 2"),
        (swapped, "1 and 4 are exchanged"),
    ):
        first, *rest = case.findings(case.reference.take(order, axis))
        assert (first.id, first.says, rest) == ("permuted", f"{plural(name)} {says}", [])
    order = np.random.default_rng(2).permutation(n)
    first = case.findings(case.reference.take(order, axis))[0]
    assert first.says.startswith(f"{plural(name)} are permuted (")


def test_heads_that_hold_others_are_named() -> None:
    case = Setting(HEADED, half=True)
    first = case.findings(case.reference[:, [0, 0, 0, 3, 3, 3]])[0]
    assert (first.id, first.says) == (
        "permuted",
        "heads are taken from others (4 of 6: 1 holds 0, 2 holds 0, 4 holds 3, …)",
    )


def test_a_copy_of_some_tokens_and_equal_inputs_say_nothing() -> None:
    case = Setting(FLAT, half=False)
    wrong = Setting(FLAT, half=False, seed=5).reference
    rotated = np.concatenate([wrong[:1], Setting(FLAT, half=False, seed=6).reference[1:]])
    assert [f.id for f in case.findings(wrong, others=[("Qcur_rope-0", rotated)])] == ["unlike"]
    x, y = case.reference, wrong.copy()
    x[3], y[3] = x[2], y[2]  # the same token twice
    found = describe(y, x, axes=FLAT, floor=F32, others=[("embd@1", y[3:4])])
    assert [f.id for f in found] == ["unlike"]


def test_a_permutation_within_each_head_is_found() -> None:
    case = Setting(FLAT, half=False)
    wrong = case.reference.reshape(12, 6, 2, 8).swapaxes(2, 3).reshape(12, 96)
    says = "features are taken from the two halves in turn (interleaved in place of half-split) within each 16"
    assert case.findings(wrong)[0].says == says


def test_exchanged_axes_are_found() -> None:
    flat, headed = Setting(FLAT, half=False), Setting(HEADED, half=True)
    wrong = flat.reference.reshape(12, 6, 16).transpose(1, 0, 2).reshape(12, 96)
    assert flat.findings(wrong)[0].says == "tokens and heads are exchanged, taking 6 heads of head_dim 16"
    wrong = flat.reference.T.reshape(12, 96)
    assert flat.findings(wrong)[0].says == "values lie in the order [feature, token] in place of [token, feature]"
    wrong = headed.reference.transpose(1, 0, 2).reshape(12, 6, 16)
    says = "values lie in the order [head, token, head_dim] in place of [token, head, head_dim]"
    assert headed.findings(wrong)[0].says == says


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


def test_a_rotation_keeps_norms() -> None:
    case = Setting(HEADED, half=False)
    x = case.reference
    angle = case.along(case.token, np.linspace(0, 3, 12))
    a, b = x[..., :8], x[..., 8:]
    wrong = np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], -1)
    first = case.findings(wrong)[0]
    assert (first.id, first.says) == (
        "norms-kept",
        "each head of each token keeps its norm, as under a rotation or permutation",
    )


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


@every_case
def test_a_constant_is_told(case: Setting) -> None:
    assert case.findings(np.full_like(case.reference, 0.5))[0].says == "every value is 0.5"


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


@every_case
def test_a_part_of_another_tensor_is_found(case: Setting) -> None:
    """A loop that ends early leaves what was there. What is zero or one number there is nobody's."""
    wrong, other = case.reference, Setting(case.axes, half=False, seed=5).reference
    part = {FLAT: np.s_[:, 32:80], HEADED: np.s_[:, 2:5], SCORES: np.s_[2:5]}[case.axes]
    wrong[part] = other[part]
    named = [("a", np.zeros_like(other)), ("b", other * 1.01), ("c", other)]
    first, *_ = case.findings(wrong, others=named)
    what = {FLAT: "features 32-79", HEADED: "heads 2-4", SCORES: "heads 2-4"}[case.axes]
    assert (first.id, first.says) == ("equals-other", f"{what} are those of c, the rest right")
    for nothing in (0.0, 1.5):
        wrong[part] = nothing
        found = case.findings(wrong, others=[("a", np.full_like(other, nothing))])
        assert "equals-other" not in [f.id for f in found]


def test_heads_that_lie_side_by_side_are_named() -> None:
    case = Setting(FLAT, half=False)
    wrong, other = case.reference, Setting(FLAT, half=False, seed=5).reference
    wrong[:, 32:80] = other[:, 32:80]
    found = describe(wrong, case.reference, axes=FLAT, floor=F32, heads=6, others=[("kqv_out-1", other)])
    assert found[0].says == "heads 2-4 are those of kqv_out-1, the rest right"
    assert found[0].values == {"of": "kqv_out-1", "head": [2, 3, 4]}
    (six, *_), (four, *_) = (describe(wrong, case.reference, axes=FLAT, floor=F32, heads=n) for n in (6, 4))
    assert six.says == "only heads 2-4 are wrong, the rest right"
    assert four.says == "only features 32-79 are wrong, the rest right"
