"""Dumps in formats of others: what is read is bit by bit what was written, under the names and steps of its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.foreign_dumps import Q, listed, npy, opened, refused, text, values
from firstdiff.dumps import Site, TraceError, names_in, open_trace
from firstdiff.dumps.spelling import layered, spelled, step_of_file

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


def test_a_file_name_that_could_harm_a_terminal_is_shown_escaped(tmp_path: Path) -> None:
    npy(tmp_path / "a\x1b[31m" / "embd.npy", values(2))
    with pytest.raises(TraceError, match=r"'a\\x1b\[31m/embd\.npy' is not printable"):
        opened(tmp_path)


def test_names_can_be_listed_without_tokens(tmp_path: Path) -> None:
    npy(tmp_path / "layer_3_q_proj.npy", values(2, 4))
    (row,) = names_in(tmp_path)
    assert (row.name, row.point, row.layer, row.nearest, row.shape) == ("layer_3_q_proj", None, 3, "Qcur", (2, 4))


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
