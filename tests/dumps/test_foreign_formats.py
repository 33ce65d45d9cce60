"""Dumps in formats of others: what is read is bit by bit what was written, and what is refused says why."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from firstdiff.dumps import Site, Trace, TraceError, names_in, open_trace
from firstdiff.dumps.spelling import layered, spelled, step_of_file

Q = Site(0, 3, "Qcur")
RNG = np.random.default_rng(7)


def values(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def npy(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=True)
    return path


def npy_bytes(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + version + length + header.encode("latin-1") + data


def text(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def listed(folder: Path, *entries: dict[str, Any], name: str = "trace.json", **parts: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"tensors": list(entries), **parts}))
    return folder


def opened(path: Path, *, tokens: int = 2, **options: Any) -> Trace:
    return open_trace(path, tokens=list(range(1, 1 + tokens)), **options)


def refused(path: Path, why: str) -> None:
    with pytest.raises(TraceError, match=why) as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


# Names of files


@pytest.mark.parametrize(
    ("path", "name", "step"),
    [
        ("Qcur-3", "Qcur-3", None),
        ("Qcur-3@1", "Qcur-3", 1),
        ("step1/Qcur-3", "Qcur-3", 1),
        ("step-001.Qcur-3", "Qcur-3", 1),
        ("step_2_Qcur-3", "Qcur-3", 2),
        ("Step 2/Qcur-3", "Qcur-3", 2),
        ("Qcur-3.step1", "Qcur-3", 1),
        ("Qcur-3_step_1", "Qcur-3", 1),
        ("steps/1/layer3/q_proj", "layer3.q_proj", 1),
        ("step1/Qcur-3@1", "Qcur-3", 1),
        ("layer_3_q_proj", "layer_3_q_proj", None),
        ("blk.3.attn_q", "blk.3.attn_q", None),
        ("model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.q_proj", None),
        ("footstep3", "footstep3", None),
        ("timestep_embedding", "timestep_embedding", None),
        ("νόρμα-3@1", "νόρμα-3", 1),
        ("step-001", "", 1),
    ],
)
def test_a_files_name_says_name_and_step(path: str, name: str, step: int | None) -> None:
    found = spelled(path)
    assert (found.name, found.step) == (name, step)


def test_a_name_of_two_steps_is_refused() -> None:
    with pytest.raises(TraceError, match="says steps 1 and 2"):
        spelled("step1/Qcur-3@2")


@pytest.mark.parametrize(
    ("name", "pattern", "bare", "layer"),
    [
        ("layer_3_q_proj", "layer_{layer}_q_proj", "q_proj", 3),
        ("blk.3.attn_q", "blk.{layer}.attn_q", "attn_q", 3),
        ("model.layers.12.mlp", "model.layers.{layer}.mlp", "model.mlp", 12),
        ("h.0.ln1", "h.{layer}.ln1", "ln1", 0),
        ("block7", "block{layer}", "", 7),
        ("Qcur-03", "Qcur-{layer}", "Qcur", 3),
        ("q_proj.3", "q_proj.{layer}", "q_proj", 3),
        ("final_norm", "final_norm", "final_norm", None),
        ("conv1x1", "conv1x1", "conv1x1", None),
    ],
)
def test_the_layer_is_found_in_a_name(name: str, pattern: str, bare: str, layer: int | None) -> None:
    assert layered(name) == (pattern, bare, layer)


@pytest.mark.parametrize(
    ("file", "step"), [("step-001.npz", 1), ("step1.layer-7.npz", 1), ("2.npz", 2), ("dump.npz", None)]
)
def test_a_file_of_many_tensors_says_its_step(file: str, step: int | None) -> None:
    assert step_of_file(file) == step


# The same tensor in every format


def in_every_format(folder: Path, array: np.ndarray) -> dict[str, Path]:
    """One tensor, Qcur-3, as a trace in each format."""
    flat = ",".join(repr(float(x)) if array.dtype == np.float64 else np.format_float_positional(x) for x in array.flat)
    (folder / "safetensors").mkdir(parents=True)
    save_file({"Qcur-3": array}, folder / "safetensors" / "step-000.safetensors")
    np.savez(folder / "stored.npz", **{"Qcur-3": array})
    np.savez_compressed(folder / "deflated.npz", **{"Qcur-3": array})
    npz = folder / "npz" / "step-000.npz"
    npz.parent.mkdir()
    np.savez_compressed(npz, **{"Qcur-3": array})
    raw = {"file": "q.bin", "dtype": array.dtype.str, "shape": list(array.shape), "layer": 3, "point": "Qcur"}
    text(folder / "raw" / "q.bin", array.tobytes())
    rows = "\n".join(" ".join(f"{x:.9g}" for x in row) for row in array)
    return {
        "safetensors": folder / "safetensors",
        "npy": npy(folder / "npy" / "Qcur-3.npy", array).parent,
        "one npy": folder / "npy" / "Qcur-3.npy",
        "npy, Fortran order": npy(folder / "fortran" / "Qcur-3.npy", np.asfortranarray(array)).parent,
        "npy, big-endian": npy(folder / "big" / "Qcur-3.npy", array.astype(array.dtype.newbyteorder(">"))).parent,
        "npz, stored": folder / "stored.npz",
        "npz, deflated": folder / "deflated.npz",
        "npz folder": npz.parent,
        "raw": listed(folder / "raw", raw),
        "text with a shape": text(folder / "shape" / "Qcur-3.txt", f"# shape: {array.shape}\n{flat}").parent,
        "text of rows": text(folder / "rows" / "Qcur-3.csv", rows).parent,
        "Rust's debug print": text(folder / "rust" / "Qcur-3.dat", f"# shape: 3x4\n[{flat.replace(',', ', ')}]").parent,
    }


def test_one_tensor_reads_bit_equal_from_every_format(tmp_path: Path) -> None:
    array = values(3, 4) * np.float32([1e-30, 1e-3, 1, 1e30])
    for name, path in in_every_format(tmp_path, array).items():
        trace = opened(path, tokens=3)
        assert trace.sites() == [Q], name
        assert trace.shape(Q) == (3, 4), name
        assert trace.dtype(Q) == "f32", name
        assert trace[Q].dtype == np.float32, name
        assert trace[Q].tobytes() == array.tobytes(), name
        assert not trace[Q].flags.writeable, name
        assert trace.unknown == (), name


@pytest.mark.parametrize(
    "dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "i1", "<i2", ">i4", "<i8", "u1", "<u8", "?"]
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (2, 3, 4)])
def test_every_dtype_and_shape_of_numpy_is_read(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = (values(*shape) * 50).astype(dtype) if shape else np.array(3).astype(dtype)
    npy(tmp_path / "npy" / "Qcur-3.npy", array.copy(order="F"))
    np.savez(tmp_path / "s.npz", odd=np.zeros(3, "u1"), **{"Qcur-3": array})
    np.savez_compressed(tmp_path / "d.npz", **{"Qcur-3": array})
    wide = np.float64 if array.dtype.itemsize == 8 or dtype == ">i4" else np.float32
    for path in (tmp_path / "npy", tmp_path / "s.npz", tmp_path / "d.npz"):
        trace = opened(path)
        assert trace.shape(Q) == shape
        assert trace[Q].dtype == wide
        np.testing.assert_array_equal(trace[Q], array.astype(wide))


def test_what_a_npy_header_cannot_say_the_manifest_says(tmp_path: Path) -> None:
    half = np.array([0x3F80, 0xC040], "<u2")  # 1, -3 in bfloat16
    npy(tmp_path / "as-u2.npy", half)
    npy(tmp_path / "as-v2.npy", half.view("V2"))
    npy(tmp_path / "fp8.npy", np.array([0x38, 0x7E], "u1").view("V1"))
    listed(
        tmp_path,
        {"file": "as-u2.npy", "dtype": "bfloat16"},
        {"file": "as-v2.npy", "dtype": "torch.bfloat16"},
        {"file": "fp8.npy", "dtype": "float8_e4m3fn", "shape": [2]},
    )
    trace = opened(tmp_path)
    read = {str(site): trace[site].tolist() for site in trace}
    assert read == {"as-u2": [1, -3], "as-v2": [1, -3], "fp8": [1, 448]}
    assert trace.dtype(Site(0, None, "as-v2")) == "bf16"
    (tmp_path / "trace.json").unlink()
    refused(tmp_path / "as-v2.npy", r"name the dtype \(bf16\)")
    assert opened(tmp_path / "as-u2.npy")[Site(0, None, "as-u2")].tolist() == [0x3F80, 0xC040]


# Steps


def test_steps_come_from_names_and_folders(tmp_path: Path) -> None:
    for path in ("Qcur-3.npy", "step1/Qcur-3.npy", "step-002.Qcur-3.npy"):
        npy(tmp_path / path, values(3 if path == "Qcur-3.npy" else 1, 4))
    trace = opened(tmp_path, tokens=5)
    assert trace.sites() == [Q, Site(1, 3, "Qcur"), Site(2, 3, "Qcur")]
    assert [len(step.tokens) for step in trace.steps] == [3, 1, 1]


def test_a_lone_npz_may_hold_several_steps(tmp_path: Path) -> None:
    np.savez(tmp_path / "run.npz", **{"Qcur-3": values(2, 4), "step1/Qcur-3": values(1, 4), "embd@1": values(1, 4)})
    assert list(map(str, opened(tmp_path / "run.npz", tokens=3))) == ["Qcur-3", "Qcur-3@1", "embd@1"]


def test_a_lone_file_of_a_later_step_is_opened_as_the_only_one(tmp_path: Path) -> None:
    assert opened(npy(tmp_path / "Qcur-3@7.npy", values(2, 4))).sites() == [Q]


def test_a_missing_step_ends_the_trace_with_a_note(tmp_path: Path) -> None:
    for step in (0, 1, 3):
        npy(tmp_path / f"embd@{step}.npy", values(1, 4))
    trace = opened(tmp_path, tokens=4)
    assert (len(trace.steps), trace.complete) == (2, False)
    assert trace.notes == ("step 2 is missing: there should be 4 steps, read up to step 1",)


def test_steps_that_count_from_one_are_refused(tmp_path: Path) -> None:
    npy(tmp_path / "step1" / "embd.npy", values(1, 4))
    refused(tmp_path, "begin at step 1, and steps count from 0")


def test_a_broken_npz_step_ends_the_trace(tmp_path: Path) -> None:
    for step in (0, 1):
        np.savez(tmp_path / f"step-{step}.npz", embd=values(1, 4))
    file = tmp_path / "step-1.npz"
    file.write_bytes(file.read_bytes()[:-30])
    trace = opened(tmp_path, tokens=2)
    assert len(trace.steps) == 1
    assert "step 1 is unreadable" in trace.notes[0]


def test_one_name_in_two_files_is_refused(tmp_path: Path) -> None:
    npy(tmp_path / "embd.npy", values(2))
    text(tmp_path / "embd.txt", "1 2")
    with pytest.raises(TraceError, match=r"tensor 'embd' is in embd\.npy too: keep one"):
        opened(tmp_path)


def test_a_trace_below_is_not_entered_and_hidden_files_are_not_read(tmp_path: Path) -> None:
    npy(tmp_path / "embd.npy", values(2))
    npy(tmp_path / ".cache" / "Qcur-3.npy", values(2))
    npy(tmp_path / "other" / "Qcur-3.npy", values(2))
    (tmp_path / "other" / "trace.json").write_text("{}")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(map(str, opened(tmp_path))) == ["embd"]


def test_shapes_come_through_unchanged(tmp_path: Path) -> None:
    for name, array in {"result_output": values(8), "l_out-0": values(1, 3, 4), "embd": values(3, 4)}.items():
        npy(tmp_path / f"{name}.npy", array)
    trace = opened(tmp_path, tokens=3)
    shapes = {str(site): trace.shape(site) for site in trace}
    assert shapes == {"result_output": (8,), "l_out-0": (1, 3, 4), "embd": (3, 4)}


def test_a_file_that_cannot_be_read_is_left_out_aloud(tmp_path: Path) -> None:
    npy(tmp_path / "embd.npy", values(2))
    text(tmp_path / "README.txt", "My notes.")
    trace = opened(tmp_path)
    assert trace.complete
    assert "README.txt: line 1: 'My' is no number" in trace.notes[0]
    file = npy(tmp_path / "l_out-0.npy", values(2))
    file.write_bytes(file.read_bytes()[:-1])
    assert not opened(tmp_path).complete


def test_a_manifest_gives_tokens_and_order_to_files(tmp_path: Path) -> None:
    npy(tmp_path / "a.npy", values(2))
    npy(tmp_path / "b.npy", values(2))
    (tmp_path / "manifest.json").write_text(json.dumps({"steps": [{"tokens": [5, 6]}], "order": ["b", "a"]}))
    trace = open_trace(tmp_path)
    assert trace.steps[0].tokens == (5, 6)
    assert list(map(str, trace)) == ["b", "a"]
    assert open_trace(tmp_path / "manifest.json").path == tmp_path


def test_many_npy_files_keep_no_descriptors(tmp_path: Path) -> None:
    for i in range(40):
        npy(tmp_path / f"l_out-{i}.npy", values(2))
    trace = opened(tmp_path)
    before = len(list(Path("/dev/fd").iterdir()))
    held = [trace[site] for site in trace]
    assert len(list(Path("/dev/fd").iterdir())) == before
    assert len(held) == 40


# npy and npz that are damaged or hostile


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is no npy file"),
        (b"\x93NUMPX\x01\x00\x00\x00", "it is no npy file"),
        (pickle.dumps([1.0], 4), "is a pickle"),
        (npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), "holds Python objects.*pickle.*astype"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(4)), "is cut short: shape"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "goes on after its array"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999,), }"), "has shape"),
        (
            npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 0), }"),
            "no file can hold",
        ),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1), }"), "up to 8"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"), "is damaged"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': 1, 'shape': (), }"), "is damaged"),
        (npy_bytes("{'descr': '<f4', 'shape': (), }"), "is damaged"),
        (npy_bytes("{'descr': True, 'fortran_order': False, 'shape': (), }"), "is damaged"),
        (npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1" * 9000), "is damaged"),
        (npy_bytes("__import__('os').abort()"), "is damaged"),
        (npy_bytes("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (), }"), "structured array"),
        (npy_bytes("{'descr': '<c8', 'fortran_order': False, 'shape': (), }", bytes(8)), "dtype '<c8' cannot be read"),
        (npy_bytes("{'descr': '<f16', 'fortran_order': False, 'shape': (), }", bytes(16)), "cannot be read"),
        (npy_bytes("{'descr': '<U3', 'fortran_order': False, 'shape': (), }", bytes(12)), "cannot be read"),
        (npy_bytes(" " * 10_001, version=b"\x02\x00"), "at most 10,000 are read"),
        (npy_bytes("{}", version=b"\x03\x00"), "version 3.0 is not read"),
        (b"\x93NUMPY\x02\x00\x10\x00\x00\x00{}", "cut short within its header"),
    ],
)
def test_a_bad_npy_is_refused_with_the_reason(tmp_path: Path, content: bytes, why: str) -> None:
    file = text(tmp_path / "x.npy", content)
    refused(file, why)


def test_a_pickled_array_is_never_left_out_quietly(tmp_path: Path) -> None:
    npy(tmp_path / "embd.npy", values(2))
    npy(tmp_path / "l_out-0.npy", np.array([{}], object))
    with pytest.raises(TraceError, match="reading one runs whatever code is in it"):
        opened(tmp_path)
    np.savez(tmp_path / "o.npz", embd=np.array([None], object))
    with pytest.raises(TraceError, match=r"o\.npz: member 'embd\.npy': holds Python objects"):
        opened(tmp_path / "o.npz")


def test_headers_of_version_2_and_python_2_are_read(tmp_path: Path) -> None:
    header = '{"shape": (2L, 1L), "descr": "<f4", "fortran_order": False}'
    text(tmp_path / "embd.npy", npy_bytes(header, values(2).tobytes(), version=b"\x02\x00"))
    assert opened(tmp_path).shape(Site(0, None, "embd")) == (2, 1)


def archive(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def array_bytes(array: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


def test_a_bad_npz_is_refused_with_the_reason(tmp_path: Path) -> None:
    good = array_bytes(values(2, 3))
    refused(text(tmp_path / "a.npz", b"PK\x03\x04"), r"format '\.npz' is not readable")
    refused(archive(tmp_path / "b.npz", {"x.txt": b"1"}), "hold no tensor")
    refused(archive(tmp_path / "c.npz", {"archive/data.pkl": b""}), "holds the pickle")
    refused(archive(tmp_path / "d.npz", {"embd.npy": good}, zipfile.ZIP_LZMA), "packed in another way")
    refused(archive(tmp_path / "e.npz", {"embd.npy": good[:-1]}), "is cut short")
    refused(archive(tmp_path / "f.npz", {"a\nb.npy": good}), "control character")
    refused(archive(tmp_path / "g.npz", {"step1/embd@2.npy": good}), "says steps 1 and 2")


def test_a_flipped_bit_of_a_deflated_member_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"embd.npy": array_bytes(values(1000))})
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    trace = opened(path)
    with pytest.raises(TraceError, match=r"member 'embd\.npy'"):
        _ = trace[Site(0, None, "embd")]


def test_a_member_that_claims_more_than_deflate_can_hold_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"embd.npy": array_bytes(np.zeros(1000, np.float32))})
    content = path.read_bytes()
    size = struct.pack("<I", 128 + 4000)
    path.write_bytes(content.replace(size, struct.pack("<I", 2**31)))
    refused(path, "cannot hold more than")


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {f"l_out-{i}.npy": array_bytes(np.zeros(1000, np.float32)) for i in (0, 1)})
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[second + 42 : second + 46] = bytes(4)  # both begin where the first does
    path.write_bytes(content)
    with pytest.raises(TraceError):
        opened(path)


def test_nothing_is_unpacked_before_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, embd=np.zeros((64, 2**18), np.float32))  # 64 MiB in 64 KiB
    tracemalloc.start()
    try:
        trace = opened(path, tokens=64)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
    assert trace.shape(Site(0, None, "embd")) == (64, 2**18)


def test_an_archive_after_other_bytes_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", {"embd.npy": array_bytes(values(2))})
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert opened(path).shape(Site(0, None, "embd")) == (2,)


def test_a_file_that_goes_or_shrinks_while_open_is_an_error(tmp_path: Path) -> None:
    file = npy(tmp_path / "embd.npy", values(2))
    trace = opened(tmp_path)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(TraceError, match="open the trace again"):
        _ = trace[Site(0, None, "embd")]
    file.unlink()
    with pytest.raises(TraceError, match="cannot be read any more"):
        _ = trace[Site(0, None, "embd")]


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


def test_a_file_name_that_could_harm_a_terminal_is_shown_escaped(tmp_path: Path) -> None:
    npy(tmp_path / "a\x1b[31m" / "embd.npy", values(2))
    with pytest.raises(TraceError, match=r"'a\\x1b\[31m/embd\.npy' is not printable"):
        opened(tmp_path)


def test_names_can_be_listed_without_tokens(tmp_path: Path) -> None:
    npy(tmp_path / "layer_3_q_proj.npy", values(2, 4))
    (row,) = names_in(tmp_path)
    assert (row.name, row.point, row.layer, row.nearest, row.shape) == ("layer_3_q_proj", None, 3, "Qcur", (2, 4))


def test_zlib_bounds_what_it_unpacks() -> None:
    """What `firstdiff.dumps.formats.npz` relies on."""
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packed.compress(bytes(10**7)) + packed.flush()
    assert 10**7 / len(data) < 1032
    assert len(zlib.decompressobj(-15).decompress(data, 100)) == 100
