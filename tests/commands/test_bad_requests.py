"""What cannot be run or written, and a llama.cpp that is missing or broken: one clear line, and the promised code."""

from __future__ import annotations

import builtins
import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.command_line import TOKENS, Command, Ran, assert_refused, strict
from builders.models import TINY, synthetic
from firstdiff.engines import ggml
from firstdiff.model.synthetic import vocabulary
from firstdiff.runs import certificate

# What to run


@pytest.mark.llama
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tokens", "1,320"], 3, ["token id 320 (number 2 of 2)", "0 to 319"]),
        (["--tokens", ",".join(["5"] * 65)], 3, ["65 tokens", "context of 64"]),
        (["--prompt", "hello " * 50], 3, ["302 tokens and 2 decode steps do not fit", "context of 64"]),
        (["--tokens", TOKENS, "--decode", "60"], 3, ["5 tokens and 60 decode steps", "context of 64"]),
        (["--tokens", "1", "--decode", "999999999"], 3, ["999,999,999 decode steps", "context of 64"]),
        (["--prompt", "", "--no-special"], 3, ["no token to run"]),
        (["--tokens", ""], 2, ["holds no token id"]),
        (["--tokens", " , "], 2, ["holds no token id"]),
        (["--tokens", "1,x"], 2, ["'x' is no token id", "1,450,7483"]),
        (["--tokens", "1.5"], 2, ["'1.5' is no token id"]),
        (["--tokens", "1_0"], 2, ["'1_0' is no token id"]),
        (["--tokens=-1"], 2, ["'-1' is no token id"]),
        (["--tokens", "9" * 5000], 2, ["is no token id"]),
        (["--tokens", "1", "--prompt", "a"], 2, ["--prompt: not allowed with argument --tokens"]),
        (["--tokens", "1", "--chat"], 2, ["--chat is for a text"]),
        (["--prompt", "hi", "--chat"], 3, ["no chat template"]),
        (["--prompt", "\udcff"], 2, ["--prompt", "UTF-8"]),
        (["--decode", "-1"], 2, ["--decode", "'-1' is no count"]),
        (["--threads", "0"], 2, ["--threads", "1 to 512"]),
        (["--threads", "100000"], 2, ["--threads", "1 to 512"]),
        (["--candidate", "none", "--decode", "1"], 2, ["--decode", "leave it out"]),
        (["--candidate", "none"], 3, ["none: there is no such file or folder"]),
        (["--frobnicate"], 2, ["--frobnicate", "--help"]),
    ],
    ids=lambda x: " ".join(x)[:30] if isinstance(x, list) else str(x),
)
def test_what_cannot_be_run_is_refused(
    firstdiff: Command, model: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    ran = firstdiff("run", model, *arguments)
    assert_refused(ran, code, *words)
    assert len(ran.err) < 400


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--engine", "telepathy"], 2, ["--engine telepathy", "llama.cpp:cpu", "reference:f32"]),
        (["--engine", "llama.cpp:cuda"], 2, ["--engine llama.cpp:cuda", "llama.cpp:cpu"]),
        (["--engine", "reference:q3"], 2, ["--engine reference:q3", "reference:ggml-cpu"]),
        (["--bug", "rope-base"], 2, ["--bug", "not in llama.cpp", "--engine reference"]),
        (["--engine", "reference", "--bug", "rope-bsae"], 2, ["--bug rope-bsae", "did you mean rope-base?"]),
        (["--engine", "reference", "--bug", "zzz" * 99], 2, ["--bug zzz", "no such bug (firstdiff demo --list"]),
        (["--engine", "reference", "--bug", "rope-base@x"], 2, ["--bug", "'x'"]),
        (["--engine", "reference", "--bug", "rope-base@"], 2, ["--bug", "''"]),
        (["--engine", "reference", "--bug", "rope-base@2"], 2, ["no layer 2", "layers 0 to 1"]),
        (["--engine", "reference", "--bug", "nibble-order"], 2, ["nibble-order", "changes no value"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else str(x),
)
def test_what_cannot_be_recorded_is_refused(
    firstdiff: Command, model: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    assert_refused(firstdiff("record", model, "--tokens", TOKENS, "--out", "t", *arguments), code, *words)


@pytest.mark.llama
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bug", "norm-esp"], ["--bug norm-esp", "did you mean norm-eps? (firstdiff demo --list names all)"]),
        (["--layer", "99"], ["no layer 99", "layers 0 to 1"]),
        (["--layer", "-1"], ["--layer", "'-1'"]),
        (["--bug", "rope-position", "--decode", "0"], ["rope-position", "changes no value"]),
    ],
    ids=" ".join,
)
def test_a_demo_that_cannot_be_given_is_refused(
    firstdiff: Command, model: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(firstdiff("demo", "--model", model, *arguments), 2, *words)


# Where to write


@pytest.mark.llama
@pytest.mark.parametrize("below", ["file", "file/below", "file/far/below"])
@pytest.mark.parametrize("command", ["run", "run --candidate", "record", "record --engine reference:f32"])
def test_an_output_that_cannot_be_written_is_named(
    firstdiff: Command, model: Path, trace: Path, tmp_path: Path, command: str, below: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    name, *rest = command.split()
    what = [trace] if rest == ["--candidate"] else ["--tokens", TOKENS]
    ran = firstdiff(name, model, *rest, *what, "--out", tmp_path / below)
    assert_refused(ran, 3, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_of_something_else_is_left_alone(firstdiff: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "step-000.safetensors").write_text("mine")
    ran = firstdiff("record", model, "--engine", "reference:f32", "--tokens", TOKENS, "--out", "thesis")
    assert_refused(ran, 3, "thesis", "no firstdiff trace", "choose another folder")
    assert (tmp_path / "thesis" / "step-000.safetensors").read_text() == "mine"


@pytest.mark.llama
def test_a_verdict_that_cannot_be_written_is_an_error(firstdiff: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "verdict.json").mkdir(parents=True)
    assert_refused(firstdiff("run", model, "--tokens", TOKENS, "--out", "out"), 3, "out/verdict.json", "--out")


# llama.cpp


@pytest.fixture
def clear_bindings() -> Iterator[None]:
    """Have llama_cpp imported and checked anew, within the test and after it."""
    caches = (ggml.bindings, ggml.library, ggml.check_layout)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def shifted(after: str) -> type[ctypes.Structure]:
    """``ggml_tensor`` with 8 bytes more behind a field, as a release of llama.cpp could have it."""
    fields: list[tuple[str, type]] = []
    for name, kind in ggml.Tensor._fields_:  # type: ignore[misc]
        fields.append((name, kind))
        if name == after:
            fields.append(("inserted", ctypes.c_int64))
    return type("Shifted", (ctypes.Structure,), {"_fields_": fields})


@pytest.mark.llama
@pytest.mark.usefixtures("clear_bindings")
@pytest.mark.parametrize(
    "after", ["type", "buffer", "ne", "nb", "op", "op_params", "src", "view_src", "view_offs", "data"]
)
def test_another_layout_of_the_struct_is_refused(
    firstdiff: Command, model: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    monkeypatch.setattr(ggml, "Tensor", shifted(after))
    ran = firstdiff("run", model, "--tokens", TOKENS)
    assert_refused(ran, 3, "struct ggml_tensor has another layout", "expected", "pip install 'firstdiff[llama]'")


@pytest.mark.llama
@pytest.mark.usefixtures("clear_bindings")
def test_doctor_says_that_another_layout_is_broken(firstdiff: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ggml, "Tensor", shifted("nb"))
    ran = firstdiff("doctor")
    assert ran.code == 3
    assert "BROKEN: struct ggml_tensor has another layout" in ran.out


BLOCKED = "import sys; sys.modules['llama_cpp'] = None; from firstdiff.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
def test_without_llama_cpp_a_run_says_how_to_install_it(model: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKED, "run", model], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_refused(
        Ran(ran.returncode, ran.stdout, ran.stderr), 3, "llama_cpp is not installed", "pip install 'firstdiff[llama]'"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("clear_bindings")
def test_without_llama_cpp_a_candidate_is_judged_against_the_reference_only(
    firstdiff: Command, model: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    ran = firstdiff("run", model, "--candidate", trace, "--json")
    assert (ran.code, ran.err) == (0, "")
    verdict = strict(ran.out)
    assert verdict["witness"] is None
    assert verdict["against"] == "reference:f32"
    assert any("against the reference only" in n and "pip install" in n for n in verdict["notes"])


@pytest.mark.usefixtures("clear_bindings")
@pytest.mark.parametrize(
    "error",
    [
        OSError("libgomp.so.1: cannot open shared object file: No such file or directory"),
        RuntimeError("Failed to load shared library 'libllama.so':\nand a second line"),
    ],
    ids=["OSError", "RuntimeError"],
)
def test_a_llama_cpp_that_does_not_load_says_why(
    firstdiff: Command, model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = builtins.__import__

    def fails(name: str, *rest: Any, **named: Any) -> Any:
        if name == "llama_cpp":
            raise error
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", fails)
    ran = firstdiff("run", model, "--tokens", TOKENS)
    assert_refused(ran, 3, "llama_cpp does not load", str(error).splitlines()[0])


@pytest.mark.llama
def test_an_assertion_that_fails_inside_llama_cpp_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    pieces, _, _ = vocabulary(TINY.n_vocab)
    pieces[300] = pieces[301]  # llama.cpp asserts that no piece stands twice
    model = synthetic(tmp_path / "model.gguf", TINY, metadata={"tokenizer.ggml.tokens": pieces})
    done = subprocess.run(
        [sys.executable, "-m", "firstdiff", "run", str(model), "--tokens", "1,2", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("firstdiff: llama.cpp gave up: ")
    assert "GGML_ASSERT" in done.stderr
    assert done.stderr.count("\n") == 1


# However it is called, and however it ends


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "none.gguf"], 3, ["none.gguf: no such file"]),
        (["run", "empty.gguf", "--tokens", "x"], 2, ["'x' is no token id"]),
        (["frobnicate"], 2, ["'frobnicate'"]),
    ],
)
def test_the_installed_command_refuses_in_the_same_way(
    tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "firstdiff", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_refused(Ran(ran.returncode, ran.stdout, ran.stderr), code, *words)


def test_an_interrupted_command_says_so(firstdiff: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(certificate, "certify", interrupt)
    assert_refused(firstdiff("run", model), 130, "interrupted")
