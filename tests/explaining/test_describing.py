"""Describing an error that no hypothesis explains: each rule is planted on random numbers, and found first."""

from __future__ import annotations

import math

import numpy as np
import pytest

from builders.described import (
    F32,
    FLAT,
    HEADED,
    PERMUTED,
    SCORES,
    SHAPES,
    Setting,
    every_axis,
    every_case,
    every_row,
    slices,
)
from firstdiff.dumps.points import plural
from firstdiff.explaining.describing.describe import describe


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


@every_case
def test_a_constant_is_told(case: Setting) -> None:
    assert case.findings(np.full_like(case.reference, 0.5))[0].says == "every value is 0.5"


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
