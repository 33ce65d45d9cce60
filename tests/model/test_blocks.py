"""Blocks taken apart and put together again are ggml's values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstdiff.model.blocks import LAYOUTS, fields
from firstdiff.model.quants import BY_NAME, SUPPORTED, dequantize


def random_blocks(name: str, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, (count, BY_NAME[name].nbytes), np.uint8)


def test_every_supported_quantised_type_has_a_layout() -> None:
    assert set(LAYOUTS) == {name for name in SUPPORTED if name.startswith("Q")}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_values_are_equal_to_the_bit(name: str) -> None:
    kind, raw = BY_NAME[name], random_blocks(name, 4096)  # any bits are a scale: NaN, infinite, subnormal
    expected = dequantize(raw.reshape(-1), kind).reshape(-1, kind.block)

    values = fields(raw, kind).values()

    assert values.dtype == np.float32
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(values), ~finite)  # the payload of a NaN is no value
    np.testing.assert_array_equal(values.view(np.uint32)[finite], expected.view(np.uint32)[finite])


@pytest.mark.parametrize("name", LAYOUTS)
def test_fields_are_the_parts_of_the_values(name: str) -> None:
    kind = BY_NAME[name]
    found = fields(random_blocks(name, 64), kind)

    assert found.codes.shape == (64, kind.block)
    assert found.codes.min() >= -(1 << 7 if name == "Q8_0" else found.offset)
    bits = int(name[1])
    assert int(found.unsigned.max()) == (127 if name == "Q8_0" else (1 << bits) - 1)
    assert kind.block % found.scale.shape[1] == 0
    assert (found.minimum is not None) == (name in {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"})


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_of_blocks_is_the_run_of_their_values(name: str) -> None:
    kind, raw = BY_NAME[name], random_blocks(name, 9)
    whole = fields(raw, kind).values()
    np.testing.assert_array_equal(fields(raw[2:5], kind).values(), whole[2:5])
    assert fields(raw[:0], kind).values().shape == (0, kind.block)
