"""Traces: their sites, and that what is written is read back, whole or up to where writing ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.traces_by_hand import ENGINE, MODEL, PROMPT, decode, numbers, prefill, record
from firstdiff.dumps import Site, Step, Trace, TraceError, TraceWriter, open_trace

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


# What is loaded with them


def test_importing_the_room_is_light() -> None:
    heavy = {"numba", "torch", "rich", "llama_cpp"}
    code = f"import sys, firstdiff.dumps; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
