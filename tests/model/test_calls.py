"""Calls: operands and attributes by name, however the architecture gave them."""

from __future__ import annotations

import numpy as np
import pytest

from firstdiff.model.arithmetic import F32
from firstdiff.model.operations import Derived, add, rope
from firstdiff.model.probe import Call, Probe
from firstdiff.model.value import Value

X = np.arange(16, dtype=np.float32).reshape(2, 1, 8)
FACTORS = object()

CALLS = {
    "left out": (Call(0, 0, "Qcur_rope", rope, (X, [3, 4]), {"pairing": "half", "base": 1e4}), None),
    "by place": (Call(0, 0, "Qcur_rope", rope, (X, [3, 4], FACTORS), {"pairing": "half", "base": 1e4}), FACTORS),
    "by name": (
        Call(0, 0, "Qcur_rope", rope, (X, [3, 4]), {"factors": FACTORS, "pairing": "half", "base": 1e4}),
        FACTORS,
    ),
}


@pytest.mark.parametrize("how", CALLS)
def test_an_operand_is_found_by_its_name(how: str) -> None:
    call, factors = CALLS[how]
    assert call.argument("factors") is factors
    assert call.argument("positions") == [3, 4]
    assert call.argument("scale") == 1.0
    assert call.argument("no such thing") is None
    assert list(call.arguments) == ["x", "positions", "factors", "pairing", "base", "scale", "dim"]


@pytest.mark.parametrize("how", CALLS)
def test_an_operand_is_replaced_by_its_name(how: str) -> None:
    call, factors = CALLS[how]
    other = call.with_arguments(factors=None, base=5e5, positions=[0, 1])
    assert (other.argument("factors"), other.argument("base"), other.argument("positions")) == (None, 5e5, [0, 1])
    assert call.argument("factors") is factors
    right = rope(X, [0, 1], pairing="half", base=5e5, arithmetic=F32)
    np.testing.assert_array_equal(other.compute(F32), right)


def test_an_operation_around_another_takes_its_operands() -> None:
    around = Derived(Derived(add, add), lambda a, b, arithmetic: 2 * add(a, b, arithmetic=arithmetic))
    call = Call(0, 0, "l_out", around, (X, X), {})
    assert list(call.arguments) == ["a", "b"]
    np.testing.assert_array_equal(call.with_arguments(b=0 * X).compute(F32), 2 * X)
    assert around.__name__ == "add"


def test_a_value_given_as_a_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match=r"probe\('l_out', add\): b is given as a keyword: give values by place"):
        Probe(F32)("l_out", add, Value(X), b=Value(X))
