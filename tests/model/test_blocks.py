"""Blocks taken apart and put together again are ggml's values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstdiff.model.block_layouts import LAYOUTS, fields
from firstdiff.model.blocks import Fields
from firstdiff.model.grid_blocks import GRIDS, GridFields, grid_fields
from firstdiff.model.quants import BY_NAME, SUPPORTED, QuantType, dequantize


def random_blocks(name: str, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, (count, BY_NAME[name].nbytes), np.uint8)


def taken_apart(raw: np.ndarray[Any, np.dtype[np.uint8]], kind: QuantType) -> Fields | GridFields:
    return fields(raw, kind) if kind.name in LAYOUTS else grid_fields(raw, kind)


def test_every_supported_quantised_type_has_a_layout() -> None:
    assert {*LAYOUTS, *GRIDS} == SUPPORTED - {"F32", "F16", "BF16"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYOUTS, *GRIDS])
def test_values_are_equal_to_the_bit(name: str) -> None:
    kind, raw = BY_NAME[name], random_blocks(name, 4096)  # any bits are a scale: NaN, infinite, subnormal
    expected = dequantize(raw.reshape(-1), kind).reshape(-1, kind.block)

    values = taken_apart(raw, kind).values()

    assert values.dtype == np.float32
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(values), ~finite)  # the payload of a NaN is no value
    np.testing.assert_array_equal(values.view(np.uint32)[finite], expected.view(np.uint32)[finite])


@pytest.mark.parametrize("name", LAYOUTS)
def test_fields_are_the_parts_of_the_values(name: str) -> None:
    kind = BY_NAME[name]
    found = fields(random_blocks(name, 64), kind)

    assert found.codes.shape == (64, kind.block)
    if found.table is None:
        assert found.codes.min() >= -(1 << 7 if name == "Q8_0" else found.offset)
    else:
        assert set(np.unique(found.codes)) == set(found.table.tolist())
    most = {"Q8_0": 127, "TQ1_0": 2, "TQ2_0": 3}
    bits = 4 if "4" in name else int(name[1]) if name.startswith("Q") else 0
    assert int(found.unsigned.max()) == most.get(name, (1 << bits) - 1)
    assert kind.block % found.scale.shape[1] == 0
    assert (found.minimum is not None) == (name in {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"})


@pytest.mark.parametrize("name", [*LAYOUTS, *GRIDS])
def test_a_run_of_blocks_is_the_run_of_their_values(name: str) -> None:
    kind, raw = BY_NAME[name], random_blocks(name, 9)
    whole = taken_apart(raw, kind).values()
    np.testing.assert_array_equal(taken_apart(raw[2:5], kind).values(), whole[2:5])
    assert taken_apart(raw[:0], kind).values().shape == (0, kind.block)
