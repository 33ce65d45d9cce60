"""Traces: what is written is read back, and what cannot be read says why."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firstdiff.dumps import Site, Step, Trace, TraceError, TraceWriter, open_trace

if TYPE_CHECKING:
    from collections.abc import Mapping

PROMPT = Step((1, 29896, 13), (0, 1, 2))
ENGINE = {"name": "rustorch", "version": "0.6.27", "backend": "metal"}
MODEL = {"file": "tiny.gguf", "sha256": "00"}


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(1, 1 + int(np.prod(shape))).reshape(shape).astype(dtype)


def prefill() -> dict[str, np.ndarray]:
    return {
        "embd": numbers(3, 4),
        "attn_norm-0": numbers(3, 4, dtype=np.float16),
        "Kcur_rope-0": numbers(3, 1, 2),
        "result_norm": numbers(3, 4, dtype=np.float64),
    }


def decode() -> dict[str, np.ndarray]:
    return {key: values[:1] for key, values in prefill().items()}


def record(path: Path, *, steps: int = 1) -> Path:
    with TraceWriter(path, engine=ENGINE, model=MODEL) as writer:
        writer.step(PROMPT, prefill())
        for i in range(1, steps):
            writer.step(Step((40 + i,), (2 + i,)), decode())
    return path


def raw_file(
    path: Path, tensors: Mapping[str, tuple[str, list[int], bytes]], *, metadata: dict[str, str] | None = None
) -> Path:
    """Write a safetensors file by hand, in the order given: name -> (dtype, shape, bytes)."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return raw_header(path, json.dumps(header).encode(), data)


def raw_header(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def dump_by_hand(folder: Path, *, rows: tuple[int, ...] = (3,)) -> Path:
    """A foreign dump with no manifest: one file a step, `rows` tokens each."""
    for i, n in enumerate(rows):
        raw_file(folder / f"step-{i:03d}.safetensors", {"embd": ("F32", [n, 2], bytes(8 * n))})
    return folder


def manifest(folder: Path, **parts: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trace.json").write_text(json.dumps(parts))
    return folder


# Sites


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("Kcur_rope-3", Site(0, 3, "Kcur_rope")),
        ("Kcur_rope-3@1", Site(1, 3, "Kcur_rope")),
        ("result_norm", Site(0, None, "result_norm")),
        ("result_norm@12", Site(12, None, "result_norm")),
        ("model.layers.3.self_attn.q_proj", Site(0, None, "model.layers.3.self_attn.q_proj")),
        ("Kcur-03", Site(0, None, "Kcur-03")),
        ("a-1-2", Site(0, 2, "a-1")),
    ],
)
def test_a_site_is_printed_as_it_is_parsed(text: str, site: Site) -> None:
    assert Site.parse(text) == site
    assert str(site) == text


def test_a_step_zero_is_understood_and_not_printed() -> None:
    assert str(Site.parse("l_out-2@0")) == "l_out-2"
    assert Site(4, 2, "l_out").key == "l_out-2"


@pytest.mark.parametrize("text", ["", "a\nb", "a/b", "a\\b", "x" * 257, "\x1b[31m", "\ud800"])
def test_a_name_that_could_harm_a_terminal_or_a_path_is_refused(text: str) -> None:
    with pytest.raises(TraceError):
        Site.parse(text)


@pytest.mark.parametrize(("step", "layer", "point"), [(0, None, "a-3"), (0, None, "a@1"), (-1, 0, "a"), (0, -1, "a")])
def test_a_site_that_would_read_back_as_another_is_refused(step: int, layer: int | None, point: str) -> None:
    with pytest.raises(TraceError, match="is no site"):
        Site(step, layer, point)


@pytest.mark.parametrize(
    ("tokens", "positions", "why"),
    [
        ((1, -2), (0, 1), r"token 1 is -2"),
        ((2**31,), (0,), "token 0 is 2147483648"),
        ((True,), (0,), "token 0 is True"),
        ((1.0,), (0,), "token 0 is 1.0"),
        ("12", (0, 1), "tokens must be a list"),
        ((1, 2), (0,), "2 tokens but 1 positions"),
        ((), (), "at least one token"),
    ],
)
def test_a_step_of_bad_tokens_is_refused(tokens: Any, positions: Any, why: str) -> None:
    with pytest.raises(TraceError, match=why):
        Step(tokens, positions)


def test_numpy_tokens_become_plain_integers() -> None:
    step = Step(np.array([1, 2]), np.arange(2))  # type: ignore[arg-type]
    assert step == Step((1, 2), (0, 1))
    assert json.dumps(step.tokens) == "[1, 2]"


# Written and read back


def test_a_written_trace_is_read_back(tmp_path: Path) -> None:
    trace = open_trace(record(tmp_path / "run", steps=2))
    assert trace.engine == ENGINE
    assert trace.model == MODEL
    assert trace.names == "firstdiff"
    assert trace.complete
    assert trace.notes == ()
    assert trace.steps == (PROMPT, Step((41,), (3,)))
    for index, step in enumerate((prefill(), decode())):
        for key, values in step.items():
            site = Site.of_key(key, index)
            np.testing.assert_array_equal(trace[site], values)
            assert trace.shape(site) == values.shape


def test_sites_come_in_execution_order_and_not_sorted(tmp_path: Path) -> None:
    trace = open_trace(record(tmp_path / "run", steps=2))
    assert [str(site) for site in trace.sites()] == [*prefill(), *(f"{key}@1" for key in prefill())]
    assert list(trace) == trace.sites()


def test_each_step_keeps_its_own_order(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "run", engine={}, model={}) as writer:
        writer.step(PROMPT, {"b": numbers(3), "a": numbers(3)})
        writer.step(Step((1,), (3,)), {"a": numbers(1), "c": numbers(1), "b": numbers(1)})
    assert [str(site) for site in open_trace(tmp_path / "run")] == ["b", "a", "a@1", "c@1", "b@1"]


def test_the_order_is_written_once_when_all_steps_share_it(tmp_path: Path) -> None:
    text = (record(tmp_path / "run", steps=3) / "trace.json").read_text()
    assert text.count("Kcur_rope-0") == 1


def test_values_are_read_only_and_float32_or_float64(tmp_path: Path) -> None:
    trace = open_trace(record(tmp_path / "run"))
    kinds = {str(site): (trace.dtype(site), trace[site].dtype.name) for site in trace}
    assert kinds["attn_norm-0"] == ("f16", "float32")
    assert kinds["embd"] == ("f32", "float32")
    assert kinds["result_norm"] == ("f64", "float64")
    with pytest.raises(ValueError, match="read-only"):
        trace[Site(0, None, "embd")][0, 0] = 1


def test_an_array_outlives_its_trace_and_its_folder(tmp_path: Path) -> None:
    values = open_trace(record(tmp_path / "run"))[Site(0, None, "embd")]
    for file in (tmp_path / "run").iterdir():
        file.unlink()
    np.testing.assert_array_equal(values, prefill()["embd"])


def test_many_arrays_of_a_file_share_one_map(tmp_path: Path) -> None:
    trace = open_trace(record(tmp_path / "run"))
    before = len(list(Path("/dev/fd").iterdir()))
    held = [trace[site] for site in trace for _ in range(20)]
    assert len(list(Path("/dev/fd").iterdir())) <= before + 1
    assert len(held) == 80


def test_an_absent_site_is_a_key_error(tmp_path: Path) -> None:
    trace = open_trace(record(tmp_path / "run"))
    site = Site(0, 9, "l_out")
    assert site not in trace
    for ask in (trace.__getitem__, trace.shape, trace.dtype):
        with pytest.raises(KeyError, match="l_out-9"):
            ask(site)


def test_sites_can_be_taken_away(tmp_path: Path) -> None:
    trace = open_trace(record(tmp_path / "run"))
    less = trace.without(lambda site: site.layer is not None)
    assert [str(site) for site in less] == ["embd", "result_norm"]
    assert len(trace.sites()) == 4
    assert less.steps == trace.steps


def test_a_trace_in_memory_reads_like_one_on_disk(tmp_path: Path) -> None:
    tensors = {Site.of_key(key, 0): values for key, values in prefill().items()}
    held = Trace.from_arrays([PROMPT], tensors, engine=ENGINE, model=MODEL)
    stored = open_trace(record(tmp_path / "run"))
    assert held.path is None
    assert held.sites() == stored.sites()
    for site in held:
        np.testing.assert_array_equal(held[site], stored[site])
        assert held[site].dtype == stored[site].dtype
        assert held.dtype(site) == stored.dtype(site)
    assert prefill()["embd"].flags.writeable


def test_a_trace_in_memory_refuses_a_step_it_does_not_have() -> None:
    with pytest.raises(TraceError, match="no step 1"):
        Trace.from_arrays([PROMPT], {Site(1, 0, "l_out"): numbers(1)}, engine={}, model={})


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8", "i2", "u1", "u8", "?", ">f4", ">f2"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_every_numpy_dtype_and_shape_survives(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = numbers(*shape, dtype=dtype)
    with TraceWriter(tmp_path / "run", engine={}, model={}) as writer:
        writer.step(PROMPT, {"a": values, "b": numbers(5, dtype="u1"), "c": values.T})
    trace = open_trace(tmp_path / "run")
    np.testing.assert_array_equal(trace[Site(0, None, "a")], values.astype(np.float64))
    np.testing.assert_array_equal(trace[Site(0, None, "c")], values.T.astype(np.float64))
    assert trace[Site(0, None, "a")].shape == shape
    assert trace[Site(0, None, "c")].flags.aligned


# Writing


def test_an_exception_leaves_a_trace_that_says_it_was_cut_short(tmp_path: Path) -> None:
    def crash() -> None:
        with TraceWriter(tmp_path / "run", engine={}, model={}) as writer:
            writer.step(PROMPT, prefill())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    trace = open_trace(tmp_path / "run")
    assert not trace.complete
    assert "cut short" in trace.notes[0]
    assert len(trace.steps) == 1


def test_a_killed_writer_leaves_the_steps_it_finished(tmp_path: Path) -> None:
    script = (
        "import os, numpy as np; from firstdiff.dumps import *\n"
        f"w = TraceWriter({str(tmp_path / 'run')!r}, engine={{}}, model={{}})\n"
        "w.step(Step((1,), (0,)), {'embd': np.zeros((1, 2))})\n"
        "os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    trace = open_trace(tmp_path / "run")
    assert (len(trace.steps), trace.complete) == (1, False)


def test_an_earlier_trace_is_replaced_whole(tmp_path: Path) -> None:
    record(tmp_path / "run", steps=3)
    (tmp_path / "run" / "step-009.safetensors.tmp").write_bytes(b"left over")
    (tmp_path / "run" / "my-notes.txt").write_text("kept")
    record(tmp_path / "run")
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "my-notes.txt",
        "step-000.safetensors",
        "trace.json",
    ]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    for content in (None, "{}", "[", '{"format": "other"}'):
        if content is not None:
            (tmp_path / "trace.json").write_text(content)
        with pytest.raises(TraceError, match="no firstdiff trace"):
            TraceWriter(tmp_path, engine={}, model={})
    with pytest.raises(TraceError, match="is a file"):
        TraceWriter(tmp_path / "thesis.tex", engine={}, model={})


def test_what_cannot_be_recorded_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="JSON"):
        TraceWriter(tmp_path / "run", engine={"threads": object()}, model={})
    with pytest.raises(TraceError, match="JSON"):
        TraceWriter(tmp_path / "run", engine={"x": float("nan")}, model={})
    with pytest.raises(TraceError, match="surrogates"):
        TraceWriter(tmp_path / "run", engine={}, model={"file": "\udcff.gguf"})
    with pytest.raises(TraceError, match="layout of 'Qcur'"):
        TraceWriter(tmp_path / "run", engine={}, model={}, layouts={"Qcur": []})
    assert not (tmp_path / "run").exists()
    with TraceWriter(tmp_path / "run", engine={}, model={}) as writer:
        for key, values in {
            "a": numbers(2, dtype=np.complex64),
            "a/b": numbers(2),
            "a@1": numbers(2),
            "ab": numbers(*[1] * 9),
            "__metadata__": numbers(2),
        }.items():
            with pytest.raises(TraceError, match="step 0: tensor '"):
                writer.step(PROMPT, {"fine": numbers(2), key: values})
        assert [file.name for file in (tmp_path / "run").iterdir()] == ["trace.json"]
    with pytest.raises(TraceError, match="closed"):
        writer.step(PROMPT, prefill())


# Foreign dumps


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


# Partial and broken


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


@pytest.mark.parametrize("layout", ["[token, feature]", "[feature, token]"])
def test_the_token_axis_is_found_in_any_layout(tmp_path: Path, layout: str) -> None:
    for i, rows in enumerate((3, 1)):
        shape = [rows, 2] if layout == "[token, feature]" else [2, rows]
        tensors = {"q": ("U8", shape, bytes(2 * rows)), "cache": ("U8", [3 + i], bytes(3 + i))}
        raw_file(tmp_path / f"step-{i}.safetensors", tensors)
    assert [len(step.tokens) for step in open_trace(tmp_path, tokens=[4, 5, 6, 7]).steps] == [3, 1]
    with pytest.raises(TraceError, match="cannot tell"):
        open_trace(tmp_path, tokens=[4, 5, 6])


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


def test_importing_the_room_is_light() -> None:
    heavy = {"numba", "torch", "rich", "llama_cpp"}
    code = f"import sys, firstdiff.dumps; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
