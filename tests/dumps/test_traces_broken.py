"""Traces that are cut short, damaged or none: read as far as they go, or refused with the part that is wrong."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from builders.traces_by_hand import dump_by_hand, manifest, raw_file, raw_header, record
from firstdiff.dumps import Site, TraceError, open_trace


def test_a_truncated_step_ends_the_trace_at_the_step_before(tmp_path: Path) -> None:
    run = record(tmp_path / "run", steps=4)
    file = run / "step-002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    trace = open_trace(run)
    assert len(trace.steps) == 2
    assert not trace.complete
    assert {site.step for site in trace} == {0, 1}
    assert "step 2 is unreadable" in trace.notes[0]
    assert "ends 8 bytes past the end of the file" in trace.notes[0]
    assert trace.notes[0].endswith("read up to step 1")


def test_fewer_files_than_steps_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    run = record(tmp_path / "run", steps=5)
    for i in (3, 4):
        (run / f"step-00{i}.safetensors").unlink()
    (run / "step-003.safetensors.tmp").write_bytes(b"half")
    trace = open_trace(run)
    assert (len(trace.steps), trace.complete) == (3, False)
    assert "step 3 is missing: 5 steps are listed" in trace.notes[0]


def test_a_file_beyond_the_listed_steps_is_ignored_aloud(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    (run / "step-001.safetensors").write_bytes((run / "step-000.safetensors").read_bytes())
    trace = open_trace(run)
    assert len(trace.steps) == 1
    assert "step 1 is ignored" in trace.notes[0]


def test_a_listed_tensor_that_no_file_holds_is_noted(tmp_path: Path) -> None:
    folder = manifest(dump_by_hand(tmp_path / "d"), order=["embd", "l_out-0"], steps=[{"tokens": [1, 2, 3]}])
    assert open_trace(folder).notes == ("step 0 lacks 1 of the tensors it lists, the first 'l_out-0'",)


def test_a_broken_first_step_leaves_nothing_to_read(tmp_path: Path) -> None:
    run = record(tmp_path / "run", steps=2)
    (run / "step-000.safetensors").write_bytes(b"\x10")
    with pytest.raises(TraceError, match=r"step-000\.safetensors: a header of"):
        open_trace(run)
    (run / "step-000.safetensors").unlink()
    with pytest.raises(TraceError, match=r"no readable step: step-000\.safetensors is missing"):
        open_trace(run)


def test_a_file_that_shrinks_or_goes_while_open_is_an_error(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    trace, file = open_trace(run), run / "step-000.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(TraceError, match="open the trace again"):
        _ = trace[Site(0, None, "embd")]
    file.unlink()
    with pytest.raises(TraceError, match="cannot be read any more"):
        _ = trace[Site(0, None, "embd")]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"format": "onnx"}, "format 'onnx' is not read: only 'firstdiff-trace' is"),
        ({"version": 2}, "version 2 of the format is not read: this firstdiff reads 1"),
        ({"version": True}, "version True"),
        ({"engine": "rustorch"}, "'engine' must be an object"),
        ({"complete": 1}, "'complete' must be true or false"),
        ({"steps": {}}, "'steps' must be a list"),
        ({"steps": []}, "lists none"),
        ({"steps": [3]}, "step 0 must be an object"),
        ({"steps": [{"tokens": [1.5]}]}, r"step 0: token 0 is 1\.5"),
        ({"steps": [{"tokens": [-1]}]}, "token 0 is -1"),
        ({"steps": [{"tokens": [2**31]}]}, "token 0 is 2147483648"),
        ({"steps": [{"tokens": []}]}, "at least one token"),
        ({"steps": [{"tokens": [1, 2], "positions": [0]}]}, "2 tokens but 1 positions"),
        ({"steps": [{"tokens": [1]}, {}]}, "step 1 has no tokens"),
        ({"names": 3}, "'names' must be"),
        ({"names": {"a": 3}}, "'names' must be"),
        ({"names": {"a": "b\n"}}, "control character"),
        ({"layouts": {"Qcur": "head"}}, "layout of 'Qcur' must be a list"),
        ({"layouts": {"Qcur": ["head", "head"]}}, "names an axis twice"),
        ({"order": "embd"}, "'order' must be a list"),
    ],
)
def test_a_broken_manifest_is_named_with_the_part_that_is_wrong(
    tmp_path: Path, parts: dict[str, Any], why: str
) -> None:
    folder = manifest(dump_by_hand(tmp_path / "d", rows=(1, 1)), **parts)
    with pytest.raises(TraceError, match=why) as caught:
        open_trace(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b"\xff",
        b"[" * 100_000,
        b'{"a": "\\ud800"}',
        b"9" * 5000,
    ],
)
def test_a_manifest_that_is_no_sound_json_is_refused(tmp_path: Path, text: bytes) -> None:
    (dump_by_hand(tmp_path / "d") / "trace.json").write_bytes(text)
    with pytest.raises(TraceError, match=r"trace\.json"):
        open_trace(tmp_path / "d", tokens=[1, 2, 3])


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": entry(dtype="F4")}, "dtype 'F4', which is not read: write one of F64"),
        ({"a": entry(dtype="f32")}, "dtype 'f32'"),
        ({"a": entry(dtype=None)}, "dtype None"),
        ({"a": entry(shape=[2])}, "has 4 bytes, which shape"),
        ({"a": entry(shape=[-1])}, "has shape"),
        ({"a": entry(shape=[True])}, "has shape"),
        ({"a": entry(shape=[1] * 9)}, "up to 8 whole numbers"),
        ({"a": entry(shape=[0, 2**62], offsets=[0, 0])}, "has 0 bytes, which shape"),
        ({"a": entry(offsets=[4, 0])}, "must be a begin and an end"),
        ({"a": entry(offsets=[0])}, "must be a begin and an end"),
        ({"a": entry(offsets=[8, 12])}, "ends 4 bytes past the end of the file"),
        ({"a": entry(offsets=[0, 2**64])}, "must be a begin and an end"),
        ({"a": entry(shape=[2**61], offsets=[0, 2**63 - 1])}, "past the end"),
        ({"a": entry(), "b": entry()}, "overlap"),
        ({"a": 3}, "JSON object"),
        ({"a/b": entry()}, "path separator"),
        ({"a@1": entry()}, "stands for a step"),
        ({"": entry()}, "1 to 256"),
        ({"x" * 257: entry()}, "1 to 256"),
        ({"a": entry(), "__metadata__": {"a": 1}}, "__metadata__"),
        ({"a": entry(), "__metadata__": {"tokens": "one"}}, "token 0 is 'one'"),
        ({}, "hold no tensor"),
    ],
)
def test_a_hostile_header_is_refused_with_the_reason(tmp_path: Path, header: dict[str, Any], why: str) -> None:
    file = raw_header(tmp_path / "x.safetensors", json.dumps(header).encode(), bytes(8))
    with pytest.raises(TraceError, match=why) as caught:
        open_trace(file, tokens=[1])
    assert str(caught.value).startswith(str(file))


def test_a_header_longer_than_the_file_is_not_allocated(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(TraceError, match="cut short, or is no safetensors file"):
        open_trace(file, tokens=[1])
    with file.open("r+b") as sparse:
        sparse.write(struct.pack("<Q", 2**33))
        sparse.truncate(2**34)
    with pytest.raises(TraceError, match="at most 8,388,608 are read"):
        open_trace(file, tokens=[1])


def test_what_is_no_trace_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "run.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "run.bin").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03")
    (tmp_path / "run.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickles").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "read.me").write_text("")
    (tmp_path / "pickles" / "step-000.pt").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, why in {
        "none": "no such file",
        "run.pt": "is a pickle",
        "run.bin": "is a pickle",
        "pickles": "is a pickle",
        "model.gguf": "GGUF model",
        "run.npz": r"format '\.npz' is not read",
        "empty": "empty folder",
        "other": "no readable step",
        "pipe.safetensors": "neither a folder nor a regular file",
        "a\0b": "null byte",
    }.items():
        with pytest.raises(TraceError, match=why):
            open_trace(tmp_path / name, tokens=[1])


def test_a_safetensors_file_of_another_name_in_a_folder_is_pointed_out(tmp_path: Path) -> None:
    raw_file(tmp_path / "prefill.safetensors", {"a": ("U8", [1], b"1")})
    with pytest.raises(TraceError, match=r"'prefill\.safetensors' is there; open that file itself"):
        open_trace(tmp_path, tokens=[1])
