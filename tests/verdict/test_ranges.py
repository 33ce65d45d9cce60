"""Where the same thing happens, in words: no site more than was seen."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from firstdiff.dumps import Site
from firstdiff.verdict.ranges import extent


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([0, 1, 2, 3, 4, 5], "at every layer"),
        ([3], "at layer 3"),
        ([3, 4, 5], "at layers 3 and up"),
        ([1, 3, 5], "at every second layer from 1"),
        ([1, 2], "at layers 1-2"),
        ([0, 2], "at layers 0, 2"),
        ([0, 1, 3, 4, 5], "at all layers but 2"),
        ([0, 2, 3, 5], "at all layers but 1, 4"),
    ],
)
def test_layers_are_said_as_people_say_them(layers: list[int], says: str) -> None:
    sites = [Site(0, layer, point) for layer in layers for point in ("Qcur_rope", "Kcur_rope")]
    assert extent(sites, 6, 1) == f"Qcur_rope and Kcur_rope {says}"


def test_layers_of_a_pattern_with_a_gap_are_said_by_the_gap() -> None:
    """Gemma's local layers: all but every sixth."""
    layers = [n for n in range(18) if n % 6 != 5]
    assert extent([Site(0, n, "Qcur_rope") for n in layers], 18, 1) == "Qcur_rope at every layer but every sixth from 5"


def test_a_pattern_that_ends_early_is_not_said_to_go_on() -> None:
    layers = [n for n in range(30) if n not in (5, 11, 17)]
    assert extent([Site(0, n, "kq") for n in layers], 30, 1) == "kq at all layers but 5, 11, 17"
    assert extent([Site(0, n, "kq") for n in (5, 11, 17)], 30, 1) == "kq at layers 5, 11, 17"


def test_points_at_other_layers_are_said_apart() -> None:
    """A wrong epsilon is below the floor where the residual stream is large."""
    sites = [
        Site(0, n, point) for n in range(6) for point in ("attn_norm", "ffn_norm") if point == "attn_norm" or n == 1
    ]
    assert extent(sites, 6, 1) == "attn_norm at every layer; ffn_norm at layer 1"
    everywhere = [
        *(Site(0, n, point) for n in range(6) for point in ("attn_norm", "ffn_norm")),
        Site(0, None, "result_norm"),
    ]
    assert extent(everywhere, 6, 1) == "attn_norm and ffn_norm at every layer; result_norm"


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ({0: range(6), 1: range(6)}, "kq at every layer"),
        ({1: range(6)}, "kq at every layer of step 1"),
        ({0: range(6), 1: [1]}, "kq at every layer of step 0; kq at layer 1 of step 1"),
        ({0: [1], 1: [1, 4], 2: [1], 3: [1, 4]}, "kq at layer 1 of steps 0, 2; kq at layers 1, 4 of steps 1, 3"),
        ({0: [1, 3], 1: [1], 2: [1, 3], 3: [3]}, "kq at layer 1 of all steps but 3; kq at layer 3 of all steps but 1"),
        ({0: [2], 1: [2], 3: [2]}, "kq at layer 2 of all steps but 2"),
        ({0: [0], 1: [1], 2: [2], 3: [3, 4]},
         "kq at layer 0 of step 0; kq at layer 1 of step 1; kq at layer 2 of step 2; and 2 more sites"),
    ],
)  # fmt: skip
def test_no_step_of_a_layer_is_claimed_that_is_right(places: dict[int, Sequence[int]], says: str) -> None:
    sites = [Site(step, layer, "kq") for step, layers in places.items() for layer in layers]
    assert extent(sites, 6, 4 if len(places) > 2 else 2) == says


@pytest.mark.parametrize(
    ("steps", "tokens", "says"),
    [
        ((1, 2, 3), (8, 1, 1, 1), "kq at layer 2 in steps of one token"),
        ((0, 2), (8, 1, 8, 1), "kq at layer 2 in steps of several tokens"),
        ((1,), (8, 1), "kq at layer 2 of step 1, the only step of one token"),
        ((0,), (8, 1, 1), "kq at layer 2 of step 0, the only step of several tokens"),
        ((2,), (8, 1, 1), "kq at layer 2 of step 2"),  # no phase
        ((0, 1), (1, 1), "kq at layer 2"),
    ],
)
def test_a_phase_is_told_as_one(steps: tuple[int, ...], tokens: tuple[int, ...], says: str) -> None:
    assert extent([Site(step, 2, "kq") for step in steps], 6, len(tokens), tokens) == says
