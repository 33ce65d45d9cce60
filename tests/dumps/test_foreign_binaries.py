"""Binary values that a manifest lists, and texts of numbers: read bit by bit, or refused with the reason."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.foreign_dumps import RNG, Q, listed, opened, refused, text, values
from firstdiff.dumps import Site, open_trace

# Binary values that a manifest lists


def test_a_manifest_lists_tensors_in_one_file(tmp_path: Path) -> None:
    q, k = values(2, 3), values(2, 2, dtype=np.float64)
    text(tmp_path / "sub" / "all.bin", b"head" + q.tobytes() + k.astype(">f8").tobytes() + b"rest")
    listed(
        tmp_path,
        {"file": "sub/all.bin", "offset": 4, "dtype": "float32", "shape": [2, 3], "name": "their.3.q"},
        {"file": "sub/all.bin", "offset": 28, "dtype": ">f8", "shape": [2, 2], "point": "Kcur", "layer": 0},
        steps=[{"tokens": [8, 9]}],
        names={"their.{layer}.q": "Qcur"},
    )
    trace = open_trace(tmp_path)
    assert trace.sites() == [Q, Site(0, 0, "Kcur")]
    assert trace[Q].tobytes() == q.tobytes()
    np.testing.assert_array_equal(trace[Site(0, 0, "Kcur")], k)


def test_a_manifest_may_map_names_to_files(tmp_path: Path) -> None:
    text(tmp_path / "x.f32", values(4).tobytes())
    entries = {"embd": {"file": "x.f32", "dtype": "f32", "shape": [4]}}
    (tmp_path / "manifest.json").write_text(json.dumps({"tensors": entries}))
    assert opened(tmp_path).shape(Site(0, None, "embd")) == (4,)


ENTRY = {"file": "x.bin", "dtype": "f32", "shape": [2], "name": "embd"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"file": "../x.bin"}, "must be a path inside the folder"),
        ({"file": "/etc/passwd"}, "must be a path inside the folder"),
        ({"file": "a/../../x.bin"}, "must be a path inside the folder"),
        ({"file": "..\\x.bin"}, "must be a path inside the folder"),
        ({"file": ""}, "must be a path inside the folder"),
        ({"file": "x\0.bin"}, "must be a path inside the folder"),
        ({"file": "out.bin"}, "leads out of the folder"),
        ({"file": "far/x.bin"}, "leads out of the folder"),
        ({"file": "loop"}, "loop"),
        ({"file": "none.bin"}, "there is no such file, and trace.json lists it"),
        ({"file": "pipe"}, "is not a regular file"),
        ({"file": "x.pt"}, "is a pickle"),
        ({"file": 3}, "must be an object with 'file'"),
        ({"dtype": None}, "needs 'dtype' and 'shape'"),
        ({"dtype": "float8"}, "say f8_e4m3, f8_e5m2 or f64"),
        ({"dtype": "q4_0"}, "dtype 'q4_0' is not known: write one of"),
        ({"dtype": ">i1x"}, "is not known"),
        ({"dtype": "f16"}, r"takes bytes 0 to 4 .* the file has 8"),
        ({"shape": [3]}, r"takes bytes 0 to 12 .* the file has 8"),
        ({"shape": [2**60, 2**60]}, "no file can hold"),
        ({"shape": "2"}, "has shape '2'"),
        ({"offset": 4}, "takes bytes 4 to 12"),
        ({"offset": -1}, "'offset' must be a whole number"),
        ({"step": 1.5}, "'step' must be a whole number"),
        ({"step": 1}, "begin at step 1"),
        ({"name": "a\nb"}, "control character"),
        ({"point": "Qcur"}, "in place of 'name'"),
        ({"layer": 3}, "'layer' belongs with 'point'"),
    ],
)
def test_an_entry_that_is_not_sound_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    folder = tmp_path / "run"
    text(folder / "x.bin", bytes(8))
    text(folder / "x.pt", bytes(8))
    text(tmp_path / "x.bin", bytes(8))
    (folder / "out.bin").symlink_to(tmp_path / "x.bin")
    (folder / "far").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    refused(listed(folder, {**ENTRY, **change}), why)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    text(tmp_path / "x.bin", bytes(8))
    (tmp_path / "y.bin").symlink_to("x.bin")
    assert opened(listed(tmp_path, {**ENTRY, "file": "y.bin"})).shape(Site(0, None, "embd")) == (2,)


@pytest.mark.parametrize(("dtype", "width"), [("i8", 1), ("<i8", 8), ("I8", 1), ("|u1", 1), ("<f8", 8), ("half", 2)])
def test_a_dtype_is_ours_or_with_a_byte_order_numpys(tmp_path: Path, dtype: str, width: int) -> None:
    text(tmp_path / "x.bin", bytes(2 * width))
    assert opened(listed(tmp_path, {**ENTRY, "dtype": dtype})).shape(Site(0, None, "embd")) == (2,)


def test_binary_values_without_a_manifest_are_told_to_need_one(tmp_path: Path) -> None:
    refused(text(tmp_path / "x.bin", bytes(8)), "list the file in a trace.json")
    refused(text(tmp_path / "x.pth", bytes(8)), "is a pickle")
    refused(text(tmp_path / "y.bin", pickle.dumps({}, 4)), "is a pickle")


# Texts of numbers


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        ("1\n2\n3\n", (3,)),
        ("1 2 3", (3,)),
        ("1,2,3\n4,5,6\n", (2, 3)),
        ("1, 2\r\n3, 4\r\n", (2, 2)),
        ("\ufeff1;2\n\n3;4", (2, 2)),
        ("1 2 3\n4 5", (5,)),
        ("[[1. 2.]\n [3. 4.]]", (2, 2)),
        ("# made by rustorch\n# shape: 3x1\n1 2 3", (3, 1)),
        ("# shape: [1, 3]\n[1.0, -2.5e-7, NaN]", (1, 3)),
        ("#Shape = (3,)\n1\n2\n3", (3,)),
        ("inf -inf nan", (3,)),
    ],
)
def test_texts_in_many_spellings_are_read(tmp_path: Path, content: str, shape: tuple[int, ...]) -> None:
    assert opened(text(tmp_path / "embd.txt", content)).shape(Site(0, None, "embd")) == shape


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "holds no number"),
        ("# shape: 3\n", "holds no number"),
        ("1\n2 three", "line 2: 'three' is no number"),
        ("1 2 ... 9", "values were left out"),
        ("1_000", "'1_000' is no number"),
        ("1..2", "is no number"),
        ("١", "is no number"),
        ("# shape: 2x2\n1 2 3", r"has 3 numbers, and shape \(2, 2\) has 4"),
        ("# shape: two\n1 2", "write it like '# shape: 3x4'"),
        ("# dtype: q4_0\n1", "dtype 'q4_0' of a text is not known"),
        ("1 2".encode("utf-16"), "this is no UTF-8 text"),
        (bytes(range(1, 255)), "is no number"),
    ],
)
def test_a_text_that_is_not_numbers_is_refused(tmp_path: Path, content: str | bytes, why: str) -> None:
    refused(text(tmp_path / "embd.txt", content), why)


def test_nine_digits_give_back_a_float32_and_more_are_a_float64(tmp_path: Path) -> None:
    bits = RNG.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    single = bits.view(np.float32)
    single = single[np.isfinite(single)]
    text(tmp_path / "embd.txt", "\n".join(f"{x:.9g}" for x in single))
    double = values(500, dtype=np.float64)
    text(tmp_path / "result_norm.txt", "\n".join(map(repr, double.tolist())))
    text(tmp_path / "result_output.txt", "# dtype: f64\n0.5 0.25")
    trace = opened(tmp_path)
    assert trace[Site(0, None, "embd")].tobytes() == single.tobytes()
    assert trace[Site(0, None, "result_norm")].tobytes() == double.tobytes()
    assert trace.dtype(Site(0, None, "result_output")) == "f64"
