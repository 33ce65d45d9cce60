"""Choices of experts: what is picked counts, not in which order; a choice that is too close to tell is told of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstdiff.dumps import Site
from firstdiff.judging.selections import close_calls, picked, selects, told
from firstdiff.model.graph.moves import top_k
from firstdiff.model.operations import add
from firstdiff.model.probe import Call

LOGITS = np.array([[0.1, 0.9, 0.4, 0.8], [5.0, 5.0, 1.0, 2.0]], np.float32)


def choice(x: Any = LOGITS, k: int = 2) -> Call:
    return Call(0, 1, "ffn_moe_topk", top_k, (np.asarray(x, np.float32),), {"k": k})


def test_a_choice_is_one() -> None:
    assert selects(choice())
    assert not selects(Call(0, 1, "ffn_inp", add, (LOGITS, LOGITS), {}))


@pytest.mark.parametrize("places", [[[1, 3], [0, 1]], [[3, 1], [1, 0]]])
def test_the_same_experts_in_another_order_are_the_same_choice(places: list[list[int]]) -> None:
    np.testing.assert_array_equal(picked(choice(), np.array(places)), np.array([[0.9, 0.8], [5, 5]], np.float32))


def test_another_expert_of_the_same_number_is_the_same_choice() -> None:
    assert picked(choice(k=1), np.array([[1], [1]]))[1] == picked(choice(k=1), np.array([[1], [0]]))[1]


@pytest.mark.parametrize(
    "wrong", [[1, 1], [1, 4], [1, -1], [1, np.nan], [1, 0.5]], ids=["twice", "beyond", "below", "nan", "half"]
)
def test_what_is_no_expert_or_was_picked_before_is_no_number(wrong: list[float]) -> None:
    found = picked(choice(LOGITS[:1]), np.array([wrong]))
    assert found[0, 0] == np.float32(0.9)
    assert np.isnan(found[0, 1])


def test_a_choice_is_close_where_the_next_number_is_within_the_floor() -> None:
    assert close_calls(choice(), 1e-6) == 0
    assert close_calls(choice(k=1), 1e-6) == 1  # 5 and 5
    assert close_calls(choice(k=1), 0.2) == 2  # 0.9 and 0.8 too
    assert close_calls(choice(k=4), 1.0) == 0  # all are chosen
    assert close_calls(Call(0, 1, "ffn_inp", add, (LOGITS, LOGITS), {}), 1.0) == 0


def test_what_is_said_of_close_choices_names_the_first() -> None:
    assert told({}) == ()
    first, second = Site(0, 3, "ffn_moe_topk"), Site(1, 4, "ffn_moe_topk")
    (one,) = told({first: 1})
    assert "not recorded at ffn_moe_topk-3, and was computed; for 1 token at ffn_moe_topk-3" in one
    (more,) = told({first: 2, second: 1})
    assert "ffn_moe_topk-3 and 1 more" in more
    assert "2 tokens" in more
