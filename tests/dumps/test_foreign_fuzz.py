"""Whatever bytes a foreign dump is made of, it is read or refused with TraceError, in memory that they account for."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from builders.traces import mutated
from firstdiff.dumps import Site, TraceError, explain_names, open_trace
from firstdiff.dumps.nearest import nearest
from firstdiff.dumps.spelling import layered, spelled
from firstdiff.dumps.tables import checked, patterns, read_table

if TYPE_CHECKING:
    from collections.abc import Iterator

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
ALLOWED = 8 * 2**20  # bytes beyond what a read tensor itself takes: caches, messages, and deflate's state


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read_or_refuse(path: Path) -> None:
    tracemalloc.start()
    try:
        trace = open_trace(path, tokens=[1, 2])
        held = 0
        for site in trace:
            values = trace[site]
            held = max(held, 3 * values.nbytes)
            assert values.shape == trace.shape(site)
            assert values.dtype in (np.float32, np.float64)
        assert all(note.isprintable() for note in trace.notes)
        assert len(explain_names(trace)) >= len(trace.sites())
    except TraceError as error:
        assert str(error).isprintable()  # noqa: PT017 - either outcome is right
        held = 0
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    assert peak < ALLOWED + held + 64 * size


def good(kind: str) -> bytes:
    held = io.BytesIO()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    if kind == "npy":
        np.save(held, array)
    elif kind == "npz":
        np.savez(held, embd=array, **{"Qcur-0": array})
    elif kind == "deflated":
        np.savez_compressed(held, embd=array, **{"Qcur-0": np.zeros((2, 300))})
    else:
        held.write(b"# shape: 2x3\n# dtype: f32\n0 1.5 -2e3\n[3, nan, inf]\n")
    return held.getvalue()


SUFFIX = {"npy": ".npy", "npz": ".npz", "deflated": ".npz", "text": ".txt"}


@pytest.mark.parametrize("kind", SUFFIX)
def test_good_bytes_are_good(folder: Path, kind: str) -> None:
    path = folder / f"embd{SUFFIX[kind]}"
    path.write_bytes(good(kind))
    assert Site(0, None, "embd") in open_trace(path, tokens=[1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", SUFFIX)
@FUZZ
@given(data=st.data())
def test_damaged_bytes_never_surprise(folder: Path, kind: str, data: st.DataObject) -> None:
    path = folder / f"embd{SUFFIX[kind]}"
    path.write_bytes(data.draw(mutated(good(kind)) | st.binary(max_size=200)))
    read_or_refuse(path)


@pytest.mark.slow
@FUZZ
@given(
    header=st.fixed_dictionaries(
        {
            "descr": st.sampled_from(["<f4", ">f8", "|O", "<V2", "|b1", "<f16", "<M8[s]", "f", ">"])
            | st.text(max_size=4),
            "fortran_order": st.booleans() | st.integers(0, 1),
            "shape": st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**62, 2**64]), max_size=9).map(tuple),
        }
    ).map(repr)
    | st.text(st.sampled_from("{}()[]'\"descrfotan_shape:, 0123456789TFalL"), max_size=80),
    data=st.binary(max_size=64),
    version=st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x00\x01"]),
)
def test_any_npy_header_never_surprises(folder: Path, header: str, data: bytes, version: bytes) -> None:
    raw = header.encode("utf-8", "surrogatepass")
    length = struct.pack("<I" if version[0] > 1 else "<H", len(raw))
    (folder / "h.npy").write_bytes(b"\x93NUMPY" + version + length + raw + data)
    read_or_refuse(folder / "h.npy")


@pytest.mark.slow
@FUZZ
@given(text=st.text(st.sampled_from("0123456789.eE+-naif,;[]() \n\r\t#x_shape:dtyf…"), max_size=120))
@example(text="# shape: " + "1x" * 90 + "1\n1")
@example(text="1" * 5000)
@example(text="1e999999 -1e999999 1e-999999")
def test_any_text_never_surprises(folder: Path, text: str) -> None:
    (folder / "embd.txt").write_text(text)
    read_or_refuse(folder / "embd.txt")


SCALARS = st.none() | st.booleans() | st.integers(-3, 2**64) | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
NAMES = st.sampled_from(["embd", "Qcur-0", "blk.0.q", "{layer}", "step1", "a@1"]) | st.text(max_size=8)
LISTED = st.fixed_dictionaries(
    {},
    optional={
        "file": st.sampled_from(["x.bin", "y.npy", "../x.bin", "/etc/hosts", "x.bin/..", "sub/x.bin", "."]) | JSON,
        "dtype": st.sampled_from(["f32", "bf16", ">f8", "float8", "<V2", "i8"]) | JSON,
        "shape": st.lists(st.integers(-1, 40) | st.sampled_from([2**31, 2**62, 2**64]), max_size=4) | JSON,
        "offset": st.integers(-1, 100) | JSON,
        "name": NAMES | JSON,
        "step": st.integers(-1, 2) | JSON,
        "layer": st.integers(-1, 2) | JSON,
        "point": NAMES | JSON,
    },
)


@pytest.mark.slow
@FUZZ
@given(
    tensors=st.lists(LISTED, max_size=4) | st.dictionaries(NAMES, LISTED, max_size=3) | JSON,
    names=st.none() | st.dictionaries(NAMES, st.sampled_from(["Qcur", "embd", "Qcur-0"]) | JSON, max_size=3) | JSON,
)
def test_any_list_of_files_never_surprises(folder: Path, tensors: Any, names: Any) -> None:
    inside = folder / "run"
    inside.mkdir(exist_ok=True)
    (inside / "x.bin").write_bytes(bytes(range(64)))
    np.save(inside / "y.npy", np.ones(2, np.float32))
    (inside / "trace.json").write_text(json.dumps({"tensors": tensors, "names": names}))
    read_or_refuse(inside)


ANY_NAME = st.text(max_size=40) | st.text(st.sampled_from("abqk_.-/@ 0123{}step layer"), max_size=60)


@pytest.mark.slow
@FUZZ
@given(name=ANY_NAME)
@example(name="Qcur" + "_AAA" * 60 + "x")
@example(name="1.2.3.4.5.6.7.8.9" * 10)
def test_any_name_is_spelled_looked_up_and_compared(name: str) -> None:
    from firstdiff.dumps.names import choose

    try:
        found = spelled(name)
    except TraceError:
        return
    assert len(found.name) <= len(name)
    pattern, _, layer = layered(name)
    assert (layer is None) == (pattern == name)
    assert 1 <= len(list(patterns(name))) <= 1 + 2 * 8 + 8 * 7
    nearest(name)
    choose([[name]])


@pytest.mark.slow
@FUZZ
@given(table=st.dictionaries(ANY_NAME, st.sampled_from(["Qcur", "embd", "Qcur-0"]) | JSON, max_size=4) | JSON)
def test_any_table_is_checked(folder: Path, table: Any) -> None:
    (folder / "t.json").write_text(json.dumps(table))
    try:
        read_table(folder / "t.json")
    except TraceError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@FUZZ
@given(content=st.binary(max_size=100) | st.text(st.sampled_from("abc.{}[]=\"'\n layer1"), max_size=80).map(str.encode))
def test_any_toml_is_checked(folder: Path, content: bytes) -> None:
    (folder / "t.toml").write_bytes(content)
    try:
        read_table(folder / "t.toml")
    except TraceError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@FUZZ
@given(name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), layer=st.integers(0, 999))
def test_a_name_is_found_by_its_own_pattern(name: str, layer: int) -> None:
    pattern = f"{name}.{{layer}}.x"
    try:
        table = checked({pattern: "Qcur"}, "t")
    except TraceError:
        return
    place = table.place(pattern.replace("{layer}", str(layer)))
    assert place is not None
    assert (place.point, place.layer) == ("Qcur", layer)


@pytest.mark.slow
@FUZZ
@given(
    values=npst.arrays(
        st.sampled_from(["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "<i4", ">i2", "u1", "?"]),
        npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    order=st.sampled_from("CF"),
)
def test_any_array_is_read_back_from_npy_and_npz(folder: Path, values: np.ndarray, order: Any) -> None:
    array = values.copy(order=order)
    np.save(folder / "embd.npy", array)
    np.savez(folder / "s.npz", embd=array)
    np.savez_compressed(folder / "d.npz", embd=array)
    for name in ("embd.npy", "s.npz", "d.npz"):
        read = open_trace(folder / name, tokens=[1])[Site(0, None, "embd")]
        assert read.shape == values.shape
        assert read.astype(values.dtype)[~np.isnan(read)].tobytes() == values[~np.isnan(read)].tobytes()
        np.testing.assert_array_equal(np.isnan(read), np.isnan(values.astype(np.float64)))
