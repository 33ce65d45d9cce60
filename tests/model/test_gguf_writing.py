"""What is written is read again: by our own reader, and by the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstdiff.model.gguf import open_gguf
from firstdiff.model.gguf_writing import Encoded, Tensor, encoded_value, write_gguf
from firstdiff.model.metadata import Metadata
from firstdiff.model.quants import BY_NAME

KEYS = {
    "general.architecture": "llama",
    "a.text": "with ünicode",
    "a.list": ["one", "", "three"],
    "a.flag": True,
    "a.number": 0.1,
    "a.u32": np.uint32(7),
    "a.u64": np.uint64(2**40),
    "a.i8": np.int8(-3),
    "a.f64": np.float64(0.1),
    "a.vector": np.arange(5, dtype=np.int32),
    "a.flags": np.array([True, False]),
}


def tensors() -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    return {
        "x": Tensor.of(rng.standard_normal((3, 5)).astype(np.float32)),
        "half": Tensor.of(rng.standard_normal(7).astype(np.float16)),
        "blocks": Tensor(BY_NAME["Q4_K"], (2, 256), rng.integers(0, 255, 288, np.uint8)),
        "nothing": Tensor(BY_NAME["Q8_0"], (4, 64), None),
        "last": Tensor.of(np.ones(1, np.float32)),
    }


def test_our_own_reader_finds_what_was_written(tmp_path: Path) -> None:
    written = tensors()
    read = open_gguf(write_gguf(tmp_path / "a.gguf", KEYS, written))
    assert set(read.metadata) == set(KEYS)
    for key, value in KEYS.items():
        found = read.metadata[key]
        assert np.array_equal(found, np.float32(value) if type(value) is float else value), key
    assert list(read.tensors) == list(written)
    for name, tensor in written.items():
        info = read.tensors[name]
        assert (info.shape, info.type) == (tensor.shape, tensor.kind)
        data = np.zeros(tensor.nbytes, np.uint8) if tensor.data is None else tensor.data
        assert np.array_equal(read.raw(name), data)


def test_the_gguf_package_finds_it_too(tmp_path: Path) -> None:
    read = gguf.GGUFReader(write_gguf(tmp_path / "a.gguf", KEYS, tensors()))
    for key, value in KEYS.items():
        assert (
            np.allclose(read.fields[key].contents(), value)
            if not isinstance(value, str | list)
            else (read.fields[key].contents() == value)
        ), key
    assert [t.name for t in read.tensors] == list(tensors())


def test_a_file_written_from_what_was_read_of_another_is_that_file(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "a.gguf", KEYS, tensors())
    read = open_gguf(first)
    assert isinstance(read.metadata, Metadata)
    keys = {key: Encoded(read.metadata.encoded(key)) for key in read.metadata}
    copied = {name: Tensor(info.type, info.shape, read.raw(name)) for name, info in read.tensors.items()}
    assert write_gguf(tmp_path / "b.gguf", keys, copied).read_bytes() == first.read_bytes()


@given(st.sampled_from([8, 32, 64, 256]), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_tensors_begin_at_multiples_of_any_alignment(
    tmp_path_factory: pytest.TempPathFactory, alignment: int, sizes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("aligned") / "a.gguf"
    written = {f"t{i}": Tensor.of(np.full(n, i, np.float32)) for i, n in enumerate(sizes)}
    for stated in (np.uint32(alignment), Encoded(encoded_value(np.uint32(alignment)))):
        read = open_gguf(write_gguf(path, {"general.alignment": stated}, written))
        assert read.alignment == alignment
        for i, n in enumerate(sizes):
            assert read.tensors[f"t{i}"].offset % alignment == 0
            assert np.array_equal(read.raw(f"t{i}").view(np.float32), np.full(n, i, np.float32))


@pytest.mark.parametrize("value", [1, None, {}, np.zeros((2, 2), np.float32), b"raw"])
def test_a_value_without_a_type_of_gguf_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no GGUF value is made of"):
        encoded_value(value)
