"""Ways of decoding blocks wrongly, on weights of llama.cpp's own quantiser."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import FILE_TYPES, quantised, synthetic

from firstdiff.block_faults import BLOCK_FAULTS, BlockWay
from firstdiff.model.blocks import LAYOUTS
from firstdiff.model.gguf import open_gguf
from firstdiff.model.quants import BY_NAME, dequantize

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

NAME = "blk.0.ffn_down.weight"
KINDS = ("F32", "F16", "BF16", *LAYOUTS)
WAYS = {
    f"{fault.id}/{kind}/{way.name}": (kind, way)
    for fault in BLOCK_FAULTS.values()
    for way in fault.ways
    for kind in way.kinds
}


def with_small_rows(path: Path) -> Path:
    """Every other row of a weight 1e-4 times what it was: its scales are subnormal in f16."""
    info = open_gguf(path).tensors[NAME]
    raw = bytearray(path.read_bytes())
    values = np.frombuffer(raw, np.float32, info.nbytes // 4, info.offset).reshape(info.shape)
    values[::2] *= 1e-4
    path.write_bytes(raw)
    return path


@pytest.fixture(scope="module")
def quantised_blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bytes]:
    folder = tmp_path_factory.mktemp("blocks")
    path = with_small_rows(synthetic(folder, n_layer=1))
    found = {}
    for kind in KINDS:
        gguf = open_gguf(quantised(path, FILE_TYPES[kind], folder / f"{kind}.gguf"))
        assert gguf.tensors[NAME].type.name == kind
        found[kind] = gguf.raw(NAME).reshape(-1, BY_NAME[kind].nbytes)
    return found


def decoded(way: BlockWay, kind: str, raw: Bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    return way.decode(raw, BY_NAME[kind])


@pytest.mark.parametrize("which", WAYS)
def test_each_way_changes_values(which: str, quantised_blocks: dict[str, Bytes]) -> None:
    kind, way = WAYS[which]
    raw = quantised_blocks[kind]
    right = dequantize(raw.reshape(-1), BY_NAME[kind]).reshape(len(raw), -1)

    wrong = decoded(way, kind, raw)

    assert wrong.dtype == np.float32
    assert wrong.shape == right.shape
    assert np.mean(wrong != right) > 0.005


@pytest.mark.parametrize("which", WAYS)
def test_each_way_takes_each_block_by_itself(which: str, quantised_blocks: dict[str, Bytes]) -> None:
    kind, way = WAYS[which]
    raw = quantised_blocks[kind][:64]
    np.testing.assert_array_equal(decoded(way, kind, raw[5:37]), decoded(way, kind, raw)[5:37])
    assert decoded(way, kind, raw[:0]).shape == (0, BY_NAME[kind].block)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_ways_give_the_same_values(kind: str, quantised_blocks: dict[str, Bytes]) -> None:
    raw = quantised_blocks[kind][:512]
    values = {which: decoded(way, name, raw) for which, (name, way) in WAYS.items() if name == kind}
    same = [
        (one, other)
        for one, other in combinations(values, 2)
        if np.array_equal(values[one], values[other], equal_nan=True)
    ]
    assert not same


@pytest.mark.parametrize("which", WAYS)
def test_any_bytes_decode_without_a_warning(which: str) -> None:
    kind, way = WAYS[which]
    raw = np.random.default_rng(5).integers(0, 256, (256, BY_NAME[kind].nbytes), np.uint8)
    assert decoded(way, kind, raw).shape == (256, BY_NAME[kind].block)


def test_every_way_of_a_fault_has_its_own_name() -> None:
    assert len(WAYS) == sum(len(way.kinds) for fault in BLOCK_FAULTS.values() for way in fault.ways)
