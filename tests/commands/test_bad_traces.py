"""Traces that are wrong, cut short or of something else: judged as far as they go, or refused in one clear line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from builders.command_line import TOKENS, Command, assert_refused, strict
from builders.traces import rewrite_trace
from firstdiff.runs import recording
from firstdiff.runs.prompt import Input


@pytest.mark.slow
def test_a_trace_of_nan_everywhere_is_judged(firstdiff: Command, model: Path, trace: Path, tmp_path: Path) -> None:
    rewrite_trace(trace, tmp_path / "nan", lambda _, x: np.full_like(x, np.nan))
    ran = firstdiff("run", model, "--candidate", "nan", "--json")
    assert ran.code == 1
    verdict = strict(ran.out)
    assert verdict["first"]["site"] == "embd"
    assert verdict["first"]["not_finite"] == 5 * 64
    assert verdict["coverage"]["not_comparable"] == 0
    report = firstdiff("run", model, "--candidate", "nan")
    assert (report.code, report.err) == (1, "")
    assert "embd" in report.out


def test_a_site_of_another_shape_is_not_comparable(
    firstdiff: Command, model: Path, trace: Path, tmp_path: Path
) -> None:
    rewrite_trace(trace, tmp_path / "odd", lambda site, x: x[:, :-1] if site == "ffn_up-1" else x)
    verdict = strict(firstdiff("run", model, "--candidate", "odd", "--json").out)
    (site,) = (s for s in verdict["sites"] if s["status"] == "not comparable")
    assert site["site"] == "ffn_up-1"
    assert "[5, 127]" in site["reason"]
    assert "[5, 128]" in site["reason"]
    assert verdict["verdict"] == "agrees"


def test_a_trace_of_which_nothing_can_be_compared_is_an_error(
    firstdiff: Command, model: Path, trace: Path, tmp_path: Path
) -> None:
    rewrite_trace(trace, tmp_path / "odd", lambda _, x: x.reshape(-1)[:-1])
    ran = firstdiff("run", model, "--candidate", "odd", "--json")
    assert ran.code == 4
    assert strict(ran.out)["verdict"] == "incomparable"
    assert {s["status"] for s in strict(ran.out)["sites"]} == {"not comparable"}
    report = firstdiff("run", model, "--candidate", "odd")
    assert report.code == 4
    assert "this is no pass" in report.out
    assert "recorded shape [319], expected [5, 64]" in " ".join(report.out.split())


def test_a_trace_that_holds_no_point_of_ours_is_an_error(firstdiff: Command, model: Path, tmp_path: Path) -> None:
    save_file({"their.tensor": np.ones((5, 64), np.float32)}, tmp_path / "odd.safetensors")
    ran = firstdiff("run", model, "--candidate", "odd.safetensors", "--tokens", TOKENS)
    assert ran.code == 4
    assert "this is no pass" in ran.out


def test_a_trace_of_another_model_is_refused(firstdiff: Command, model: Path, trace: Path, tmp_path: Path) -> None:
    rewrite_trace(trace, tmp_path / "other", model={"file": "other.gguf", "sha256": "ab" * 32})
    ran = firstdiff("run", model, "--candidate", "other")
    assert_refused(ran, 3, "other", "another model", "other.gguf", "abababababab", model.name)


def without_tokens(trace: Path, out: Path) -> Path:
    """A lone file as another engine dumps it: tensors, and nothing said of them."""
    save_file(load_file(trace / "step-000.safetensors"), out)
    return out


def test_a_trace_without_tokens_asks_for_them(firstdiff: Command, model: Path, trace: Path, tmp_path: Path) -> None:
    dump = without_tokens(trace, tmp_path / "dump.safetensors")
    assert_refused(firstdiff("run", model, "--candidate", dump), 3, str(dump), "no tokens", "--tokens")
    assert firstdiff("run", model, "--candidate", dump, "--tokens", TOKENS).code == 0


def test_tokens_that_contradict_the_trace_are_refused(firstdiff: Command, model: Path, trace: Path) -> None:
    ran = firstdiff("run", model, "--candidate", trace, "--tokens", "1,70,99")
    assert_refused(ran, 3, str(trace), "token 2 is 71 in the trace and 99")


def test_tokens_of_a_trace_that_the_model_cannot_run_are_refused(
    firstdiff: Command, model: Path, trace: Path, tmp_path: Path
) -> None:
    dump = without_tokens(trace, tmp_path / "dump.safetensors")
    ran = firstdiff("run", model, "--candidate", dump, "--tokens", "1,70,71,72,5000")
    assert_refused(ran, 3, str(dump), "token id 5000 (number 5 of 5)", "0 to 319")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("dump.pt", b"\x80\x02}q\x00.", ["pickle", "safetensors"]),
        ("dump.npz", b"PK\x03\x04", ["'.npz'", "safetensors"]),
        ("dump.safetensors", b"\xff" * 64, []),
        ("dump.safetensors", b"", []),
        ("model.gguf", b"GGUF", ["is a GGUF model and no trace", "firstdiff record"]),
    ],
    ids=["pickle", "npz", "garbage", "empty", "gguf"],
)
def test_a_file_that_is_no_trace_is_told_what_it_is(
    firstdiff: Command, model: Path, tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(firstdiff("run", model, "--candidate", path), 3, str(path), *words)


def test_a_crashed_run_is_judged_up_to_the_crash(firstdiff: Command, model: Path, trace: Path, tmp_path: Path) -> None:
    rewrite_trace(trace, tmp_path / "crashed", steps=1)
    (tmp_path / "crashed" / "step-001.safetensors.tmp").write_bytes(b"half a fi")
    ran = firstdiff("run", model, "--candidate", "crashed", "--json")
    assert ran.code == 0
    assert {s["step"] for s in strict(ran.out)["sites"]} == {0}
    assert any("cut short" in note for note in strict(ran.out)["notes"])


def test_a_broken_step_ends_the_trace_before_it(firstdiff: Command, model: Path, trace: Path, tmp_path: Path) -> None:
    shutil.copytree(trace, tmp_path / "broken")
    step = tmp_path / "broken" / "step-001.safetensors"
    step.write_bytes(step.read_bytes()[:-100])
    ran = firstdiff("run", model, "--candidate", "broken", "--json")
    assert ran.code == 0
    assert {s["step"] for s in strict(ran.out)["sites"]} == {0}
    assert any("step 1 is unreadable" in note for note in strict(ran.out)["notes"])


# Two traces


@pytest.fixture
def other_tokens(model: Path, tmp_path: Path) -> Path:
    out = tmp_path / "other"
    recording.record(model, Input(tokens=(1, 70, 99, 72, 73)), out, engine="reference:f32", decode=1, threads=1)
    return out


def test_traces_of_other_tokens_are_refused(
    firstdiff: Command, model: Path, trace: Path, other_tokens: Path, tmp_path: Path
) -> None:
    ran = firstdiff("diff", trace, other_tokens, "--model", model)
    assert_refused(ran, 3, str(other_tokens), "step 0, place 2", "[99, 72, 73] for [71, 72, 73]", "same tokens")
    shorter = rewrite_trace(trace, tmp_path / "shorter", steps=1)
    assert_refused(firstdiff("diff", trace, shorter, "--model", model), 3, str(shorter), "1 step", "2")


def test_traces_without_their_model_ask_for_it(firstdiff: Command, trace: Path) -> None:
    assert_refused(firstdiff("diff", trace, trace), 2, str(trace), "--model")
