"""Bytes taken from other places: across blocks, and from beside a tensor."""

from __future__ import annotations

import mmap
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.models import ROW, SMOLLM2, WEIGHT, Bytes, synthetic
from firstdiff.hypotheses.blocks.buffers import BUFFER_FAULTS, BufferWay, shifted, shifts, strides, walked
from firstdiff.hypotheses.blocks.faults import BLOCK_FAULTS
from firstdiff.model import synthetic as synthetic_model
from firstdiff.model.block_layouts import LAYOUTS
from firstdiff.model.cursor import Cursor
from firstdiff.model.gguf import GGUF, open_gguf
from firstdiff.model.grid_blocks import GRIDS
from firstdiff.model.metadata import LEAST_KEY, read_metadata
from firstdiff.model.quants import BY_NAME, dequantize
from firstdiff.model.tensor_table import LEAST_ENTRY, read_tensor_table

WAYS = {
    f"{fault.id}/{kind}/{way.name}": (kind, way)
    for fault in BUFFER_FAULTS.values()
    for way in fault.ways
    for kind in way.kinds
}


def values(way: BufferWay, name: str, raw: Bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    kind = BY_NAME[name]
    return dequantize(way.change(raw, kind, ROW // kind.block), kind)


@pytest.mark.parametrize("which", WAYS)
def test_each_way_changes_values_and_keeps_the_length(which: str, quantised_raw: dict[str, Bytes]) -> None:
    kind, way = WAYS[which]
    raw = quantised_raw[kind]

    wrong = values(way, kind, raw)

    right = dequantize(raw, BY_NAME[kind])
    assert wrong.shape == right.shape
    assert np.mean((wrong != right)[(wrong != 0) | (right != 0)]) > 0.1
    if not which.startswith(("scale-of-block", "header-length")):
        np.testing.assert_array_equal(wrong[: BY_NAME[kind].block], right[: BY_NAME[kind].block])


@pytest.mark.parametrize("kind", [*LAYOUTS, *GRIDS])
def test_no_two_ways_give_the_same_values_nor_does_one_of_a_block(kind: str, quantised_raw: dict[str, Bytes]) -> None:
    blocks = quantised_raw[kind].reshape(-1, BY_NAME[kind].nbytes)
    found = {which: values(way, name, quantised_raw[kind]) for which, (name, way) in WAYS.items() if name == kind}
    for fault in BLOCK_FAULTS.values():
        for way in fault.ways:
            if kind in way.kinds:
                found[f"{fault.id}/{kind}/{way.name}, by block"] = way.decode(blocks, BY_NAME[kind]).reshape(-1)
    assert not [
        (one, other)
        for one, other in combinations(found, 2)
        if np.array_equal(found[one], found[other], equal_nan=True)
    ]


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K"])
@pytest.mark.parametrize("row", [None, 4])
def test_a_walk_takes_blocks_a_stride_apart(kind: str, row: int | None) -> None:
    type_ = BY_NAME[kind]
    size = type_.nbytes
    raw = np.random.default_rng(6).integers(1, 256, 12 * size, np.uint8)
    for stride in strides(type_):
        blocks = walked(raw, type_, stride, row).reshape(12, size)
        for i, block in enumerate(blocks):
            start = i * stride if row is None else i // row * row * size + i % row * stride
            there = raw[start : start + size]
            np.testing.assert_array_equal(block, [*there, *[0] * (size - there.size)])


def test_a_walk_of_the_right_size_changes_nothing() -> None:
    raw = np.random.default_rng(6).integers(0, 256, 12 * 18, np.uint8)
    np.testing.assert_array_equal(walked(raw, BY_NAME["Q4_0"], 18), raw)
    assert walked(raw[:0], BY_NAME["Q4_0"], 20).size == 0


def header_end(path: Path) -> int:
    with path.open("rb") as file:
        cursor = Cursor(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 8)
    tensors, keys = cursor.count(LEAST_ENTRY, "tensors"), cursor.count(LEAST_KEY, "keys")
    alignment = read_metadata(cursor, keys).get("general.alignment", 32)
    read_tensor_table(cursor, tensors, alignment)
    return cursor.pos


def by_name(gguf: GGUF, name: str) -> dict[str, int]:
    return {s.name: s.by for s in shifts(gguf, name)}


@pytest.mark.parametrize("alignment", [32, 64, 1024])
def test_shifts_are_counted_from_the_end_of_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alignment: int
) -> None:
    monkeypatch.setattr(synthetic_model, "ALIGNMENT", alignment)
    path = synthetic(tmp_path, n_layer=2, n_embd=48, n_head=3, n_head_kv=1, head_dim=16, n_ff=40)
    gguf = open_gguf(path)
    assert gguf.alignment == alignment
    end, offset = header_end(path), gguf.tensors[WEIGHT].offset
    base = min(t.offset for t in gguf.tensors.values())
    assert base > end  # or this test shows nothing

    found = by_name(gguf, WEIGHT)

    data = path.read_bytes()
    assert found["the padding behind the header ignored"] == end - base
    if alignment != 32:
        assert found[f"data aligned to 32 bytes in place of {alignment}"] == -(-end // 32) * 32 - base
    before = [t.nbytes for t in gguf.tensors.values() if t.offset < offset]
    if sum(before) != offset - base:
        assert found["no padding at all"] == end + sum(before) - offset
    assert found["the next tensor's offset"] == min(
        t.offset - offset for t in gguf.tensors.values() if t.offset > offset
    )
    for by in found.values():
        raw = shifted(gguf, WEIGHT, by)
        assert raw is not None
        assert raw.tobytes() == data[offset + by : offset + by + gguf.tensors[WEIGHT].nbytes]
    assert len(set(found.values())) == len(found)
    assert 0 not in found.values()


@pytest.mark.smollm2
def test_a_header_that_ends_where_the_data_begin_has_no_padding_to_ignore() -> None:
    gguf = open_gguf(SMOLLM2)
    assert header_end(SMOLLM2) == min(t.offset for t in gguf.tensors.values())
    found = by_name(gguf, "blk.3.attn_k.weight")
    assert "the padding behind the header ignored" not in found
    assert found["data aligned to 256 bytes in place of 32"] == -header_end(SMOLLM2) % 256


@pytest.mark.smollm2
def test_no_bytes_are_taken_from_outside_the_file() -> None:
    gguf = open_gguf(SMOLLM2)
    first, last = (f(gguf.tensors.values(), key=lambda t: t.offset) for f in (min, max))
    assert shifted(gguf, first.name, -first.offset - 1) is None
    assert shifted(gguf, first.name, -first.offset) is not None
    assert shifted(gguf, last.name, 4096) is None
    assert "the next tensor's offset" not in by_name(gguf, last.name)
    assert "the offset of the tensor before" not in by_name(gguf, first.name)
