"""Traces that others wrote: tokens, positions, names and steps are taken from wherever they are said, or asked for."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from builders.traces_by_hand import dump_by_hand, manifest, prefill, raw_file, record
from firstdiff.dumps import Site, Step, TraceError, open_trace


def test_a_lone_file_is_a_trace_of_one_step(tmp_path: Path) -> None:
    file = raw_file(tmp_path / "dump.safetensors", {"blk": ("F32", [2, 1], struct.pack("<2f", 1, 2))})
    trace = open_trace(file, tokens=[7, 8])
    assert trace.steps == (Step((7, 8), (0, 1)),)
    assert trace.names is None
    np.testing.assert_array_equal(trace[Site(0, None, "blk")], [[1], [2]])


@pytest.mark.parametrize("text", ["[7, 8]", "7 8", "7,8"])
def test_tokens_may_stand_in_the_files_metadata(tmp_path: Path, text: str) -> None:
    file = raw_file(tmp_path / "d.safetensors", {"a": ("U8", [], b"1")}, metadata={"tokens": text, "positions": "4 5"})
    assert open_trace(file).steps == (Step((7, 8), (4, 5)),)


def test_a_written_step_is_a_trace_of_its_own(tmp_path: Path) -> None:
    trace = open_trace(record(tmp_path / "run", steps=2) / "step-001.safetensors")
    assert trace.steps == (Step((41,), (3,)),)
    assert set(map(str, trace)) == set(prefill())


def test_the_manifest_itself_may_be_named(tmp_path: Path) -> None:
    assert open_trace(record(tmp_path / "run") / "trace.json").path == tmp_path / "run"


def test_tokens_are_asked_for_when_nothing_says_them(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"has no tokens: give them with --tokens"):
        open_trace(dump_by_hand(tmp_path / "d"))


def test_given_tokens_are_shared_out_one_to_each_later_step(tmp_path: Path) -> None:
    trace = open_trace(dump_by_hand(tmp_path / "d", rows=(3, 1, 1)), tokens=[5, 6, 7, 8, 9])
    assert trace.steps == (Step((5, 6, 7), (0, 1, 2)), Step((8,), (3,)), Step((9,), (4,)))


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ([5, 6, 7, 8], "cannot tell which of 4"),
        ([5] * 9, r"leaves 7, and the tensors show \[3\] rows"),
        ([1], "only 1 tokens"),
    ],
)
def test_tokens_that_do_not_fit_the_steps_are_refused(tmp_path: Path, tokens: list[int], why: str) -> None:
    with pytest.raises(TraceError, match=why):
        open_trace(dump_by_hand(tmp_path / "d", rows=(3, 1, 1)), tokens=tokens)


def test_a_manifest_of_tokens_alone_is_enough(tmp_path: Path) -> None:
    folder = manifest(dump_by_hand(tmp_path / "d", rows=(3, 2)), steps=[{"tokens": [1, 2, 3]}, {"tokens": [4, 5]}])
    trace = open_trace(folder)
    assert trace.steps == (Step((1, 2, 3), (0, 1, 2)), Step((4, 5), (3, 4)))
    assert trace.complete
    assert trace.names is None


def test_tokens_for_a_trace_without_any_leave_those_of_one_that_has_them(tmp_path: Path) -> None:
    run = open_trace(record(tmp_path / "run", steps=2), otherwise=[7, 8, 9])
    assert (run.steps[0].tokens, run.says_tokens) == ((1, 29896, 13), True)
    silent = open_trace(dump_by_hand(tmp_path / "d", rows=(3, 1, 1)), otherwise=[5, 6, 7, 8, 9])
    assert (silent.steps[0].tokens, silent.says_tokens) == ((5, 6, 7), False)
    with pytest.raises(TraceError, match="has no tokens"):
        open_trace(tmp_path / "d")


def test_given_tokens_must_be_those_of_the_trace(tmp_path: Path) -> None:
    run = record(tmp_path / "run", steps=2)
    assert open_trace(run, tokens=[1, 29896, 13]).steps[1].tokens == (41,)
    with pytest.raises(TraceError, match="token 1 is 29896 in the trace and 5 in those given"):
        open_trace(run, tokens=[1, 5, 13])


def test_positions_go_on_from_the_step_before(tmp_path: Path) -> None:
    steps = [{"tokens": [1, 2, 3], "positions": [10, 11, 12]}, {"tokens": [4]}]
    trace = open_trace(manifest(dump_by_hand(tmp_path / "d", rows=(3, 1)), steps=steps))
    assert trace.steps[1].positions == (13,)


def test_names_layouts_and_unknown_parts_are_taken_over(tmp_path: Path) -> None:
    folder = manifest(
        dump_by_hand(tmp_path / "d"),
        steps=[{"tokens": [1, 2, 3], "wall_ms": 4}],
        names={"their.{layer}.q": "Qcur"},
        layouts={"Qcur": ["head", "token", "head_dim"]},
        comment=[None, {}],
    )
    trace = open_trace(folder)
    assert trace.names == {"their.{layer}.q": "Qcur"}
    assert trace.layouts == {"Qcur": ("head", "token", "head_dim")}


def test_a_step_may_be_split_and_parts_are_taken_in_number_order(tmp_path: Path) -> None:
    for layer in (10, 9):
        raw_file(tmp_path / f"step-000.layer-{layer}.safetensors", {f"l_out-{layer}": ("F32", [1], bytes(4))})
    assert [str(site) for site in open_trace(tmp_path, tokens=[1])] == ["l_out-9", "l_out-10"]
    raw_file(tmp_path / "step-000.more.safetensors", {"l_out-9": ("F32", [1], bytes(4))})
    with pytest.raises(TraceError, match=r"'l_out-9' is in step-000\.layer-9\.safetensors too"):
        open_trace(tmp_path, tokens=[1])


def test_without_an_order_tensors_come_as_they_lie_in_the_file(tmp_path: Path) -> None:
    raw_file(tmp_path / "step-0.safetensors", {"z": ("U8", [1], b"1"), "a": ("U8", [1], b"2")})
    assert [str(site) for site in open_trace(tmp_path, tokens=[1])] == ["z", "a"]


@pytest.mark.parametrize(
    ("dtype", "content", "values"),
    [
        ("BF16", b"\x80\x3f\xc0\xff", [1.0, np.nan]),
        ("F8_E4M3", b"\x38\x7e\x01\x80\xff", [1.0, 448.0, 2**-9, -0.0, np.nan]),
        ("F8_E5M2", b"\x3c\x7b\x01\xfc", [1.0, 57344.0, 2**-16, -np.inf]),
        ("BOOL", b"\x00\x01\x02", [0, 1, 1]),
        ("I32", b"\xff\xff\xff\x7f", [2**31 - 1]),
    ],
)
def test_what_numpy_does_not_know_is_widened(tmp_path: Path, dtype: str, content: bytes, values: list[float]) -> None:
    file = raw_file(tmp_path / "x.safetensors", {"a": (dtype, [len(values)], content)})
    trace = open_trace(file, tokens=[1])
    np.testing.assert_array_equal(trace[Site(0, None, "a")], values)
    assert trace.dtype(Site(0, None, "a")) == dtype.lower()


@pytest.mark.parametrize("layout", ["[token, feature]", "[feature, token]"])
def test_the_token_axis_is_found_in_any_layout(tmp_path: Path, layout: str) -> None:
    for i, rows in enumerate((3, 1)):
        shape = [rows, 2] if layout == "[token, feature]" else [2, rows]
        tensors = {"q": ("U8", shape, bytes(2 * rows)), "cache": ("U8", [3 + i], bytes(3 + i))}
        raw_file(tmp_path / f"step-{i}.safetensors", tensors)
    assert [len(step.tokens) for step in open_trace(tmp_path, tokens=[4, 5, 6, 7]).steps] == [3, 1]
    with pytest.raises(TraceError, match="cannot tell"):
        open_trace(tmp_path, tokens=[4, 5, 6])
