"""Bad input, through the real command line: one clear line, the exit code that is promised, and no traceback."""

from __future__ import annotations

import builtins
import ctypes
import dataclasses
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from builders.command_line import TOKENS, Command, Ran, assert_refused, strict
from builders.engines import recorded_by_reference
from builders.models import TINY, Stored, stored, synthetic, tensor_of
from builders.traces import rewrite_trace
from firstdiff.engines import ggml
from firstdiff.model.synthetic import Llama, vocabulary
from firstdiff.runs import certificate, recording
from firstdiff.runs.prompt import Input

Q = "blk.1.attn_q.weight"
WIDE = Llama(n_layer=1, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_vocab=320)
U32 = np.uint32


@pytest.fixture(scope="module")
def trace(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A right engine's trace of one prompt and one decode step."""
    return recorded_by_reference(model, tmp_path_factory.mktemp("trace") / "right")


@pytest.fixture
def clear_bindings() -> Iterator[None]:
    """Have llama_cpp imported and checked anew, within the test and after it."""
    caches = (ggml.bindings, ggml.library, ggml.check_layout)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


# A file that is no model


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"hello, world", ["is no GGUF file", "b'hell'", "b'GGUF'"]),
        (b"PK\x03\x04" + bytes(64), ["is no GGUF file", "zip archive"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer", "git lfs pull"]),
        (b"GGUF" + struct.pack(">I", 3) + bytes(64), ["big-endian"]),
    ],
)
def test_a_file_that_is_no_model_is_told_what_it_is(
    firstdiff: Command, tmp_path: Path, content: bytes, words: list[str]
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert_refused(firstdiff("run", path), 3, str(path), *words)


def test_a_path_that_leads_nowhere_is_named(firstdiff: Command, tmp_path: Path) -> None:
    assert_refused(firstdiff("run", tmp_path / "none.gguf"), 3, str(tmp_path / "none.gguf"), "no such file")
    assert_refused(firstdiff("run", tmp_path), 3, str(tmp_path), "is a folder")


def test_a_mistake_leaves_no_folder_behind(firstdiff: Command, model: Path, tmp_path: Path) -> None:
    firstdiff("run", tmp_path / "none.gguf")
    firstdiff("run", model, "--tokens", "999")
    firstdiff("demo", "--model", tmp_path / "none.gguf")
    firstdiff("demo", "--model", model, "--layer", "99")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_not_printable_is_escaped(firstdiff: Command, tmp_path: Path) -> None:
    ran = firstdiff("run", tmp_path / "two\nlines\x1b[2J.gguf")
    assert_refused(ran, 3, r"two\nlines\x1b[2J.gguf", "no such file")


@pytest.mark.parametrize(
    ("version", "advice"), [(0, "fetch a newer file"), (1, "fetch a newer file"), (99, "take a newer firstdiff")]
)
def test_another_version_of_gguf_is_refused(
    firstdiff: Command, model: Path, tmp_path: Path, version: int, advice: str
) -> None:
    raw = model.read_bytes()
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw[:4] + struct.pack("<I", version) + raw[8:])
    assert_refused(firstdiff("run", path), 3, str(path), f"version {version}", "knows 2 and 3", advice)


# A file that is damaged


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda _: 3, ["the magic", "file size 3"]),
        (lambda _: 20, ["declares 21 tensors", "4 bytes left"]),
        (lambda _: 4000, ["'tokenizer.ggml.tokens'", "file size 4,000"]),
        (lambda raw: raw.index(Q.encode()) + 30, [Q, "past the end of the file"]),
        (lambda raw: len(raw) - 1000, ["'output.weight' ends 1,000 bytes past the end of the file", "size 81,920"]),
    ],
    ids=["magic", "header", "metadata", "tensor table", "data"],
)
def test_a_file_cut_short_is_told_where(
    firstdiff: Command, model: Path, tmp_path: Path, cut: Callable[[bytes], int], words: list[str]
) -> None:
    raw = model.read_bytes()
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw[: cut(raw)])
    assert_refused(firstdiff("run", path), 3, str(path), "the download is probably cut short", *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": 1 << 40}, ["ends 1,099,511", "past the end of the file", "size 16,384"]),
        ({"offset": (1 << 64) - 32}, ["past the end of the file", "damaged"]),
        ({"offset": 32}, ["overlaps", "'token_embd.weight'"]),
        ({"offset": 33}, ["byte 33", "alignment 32"]),
        ({"ne": (64, 1 << 30)}, ["past the end of the file", "size 274,877,906,944"]),
        ({"ne": (1 << 62, 1 << 62)}, ["past the end of the file", "damaged"]),  # 2^126 bytes are 0 in 64 bits
        ({"ne": (0, 64)}, ["[0, 64]", "F32", "damaged"]),
        ({"ne": (8, 8, 8, 8, 1)}, ["has 5 dimensions", "1 to 4"]),
    ],
    ids=["offset", "offset overflows", "overlap", "misaligned", "size", "size overflows", "no row", "dimensions"],
)
def test_a_tensor_that_cannot_lie_there_is_named(
    firstdiff: Command, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    path = synthetic(tmp_path / "bad.gguf", TINY, tensors={Q: dataclasses.replace(tensor_of(Q), **changes)})
    assert_refused(firstdiff("run", path), 3, str(path), Q, *words)


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (lambda raw: raw[:8] + struct.pack("<Q", 1 << 60) + raw[16:], ["1,152,921,504,606,846,976 tensors", "damaged"]),
        (lambda raw: raw[:16] + struct.pack("<Q", 1 << 60) + raw[24:], ["1,152,921,504,606,846,976 metadata keys"]),
        (
            lambda raw: raw.replace(struct.pack("<Q", 15) + b"synthetic", struct.pack("<Q", 1 << 40) + b"synthetic"),
            ["'general.name'", "size 1,099,511,627,776"],
        ),
        (
            lambda raw: raw.replace(struct.pack("<IQ", 8, 320), struct.pack("<IQ", 8, 1 << 40)),
            ["1,099,511,627,776 array elements", "'tokenizer.ggml.tokens'"],
        ),
    ],
    ids=["tensors", "keys", "string", "array"],
)
def test_an_absurd_count_is_refused_without_allocating(
    firstdiff: Command, model: Path, tmp_path: Path, forge: Callable[[bytes], bytes], words: list[str]
) -> None:
    raw = model.read_bytes()
    path = tmp_path / "bad.gguf"
    path.write_bytes(forge(raw))
    assert path.read_bytes() != raw
    tracemalloc.start()
    try:
        ran = firstdiff("run", path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_refused(ran, 3, str(path), *words)
    assert peak < 4 << 20


# A model that is not supported


def test_a_quantisation_type_that_nobody_knows_is_named(firstdiff: Command, tmp_path: Path) -> None:
    path = synthetic(tmp_path / "bad.gguf", TINY, tensors={Q: dataclasses.replace(tensor_of(Q), kind=99)})
    assert_refused(firstdiff("run", path), 3, str(path), Q, "quantisation type 99")


@pytest.mark.parametrize(("kind", "name", "block"), [(23, "IQ4_XS", 136), (22, "IQ2_S", 82), (24, "I8", 256)])
def test_a_quantisation_type_that_is_not_supported_is_named(
    firstdiff: Command, tmp_path: Path, kind: int, name: str, block: int
) -> None:
    tensor = Stored((256, 256), kind, bytes(256 * block))
    path = synthetic(tmp_path / "bad.gguf", shape=WIDE, tensors={"blk.0.attn_q.weight": tensor})
    ran = firstdiff("run", path)
    assert_refused(ran, 3, str(path), "'blk.0.attn_q.weight'", name, "supported: BF16, F16, F32, Q2_K", "requantise")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "mamba"}, ["'mamba'", "supported: llama"]),
        ({"general.architecture": None}, ["names no architecture", "supported: llama"]),
        ({"general.architecture": U32(3)}, ["architecture 3", "supported: llama"]),
        ({"general.architecture": ["llama"]}, ["architecture ['llama']", "supported: llama"]),
        ({"llama.expert_count": U32(8)}, ["'llama.expert_count' is 8", "no mixture of experts"]),
        ({"llama.rope.scaling.type": "yarn"}, ["'llama.rope.scaling.type' is 'yarn'", "'linear' and 'none'"]),
        ({"llama.rope.dimension_count": U32(8)}, ["'llama.rope.dimension_count' is 8", "only 16", "partial"]),
        ({"llama.rope.dimension_count": np.array([8, 8], np.int32)}, ["[8, 8]", "only 16"]),
        ({"llama.attention.value_length": U32(8)}, ["'llama.attention.value_length' is 8", "only 16"]),
        ({"llama.attention.head_count": U32(3)}, ["3 heads", "2 KV heads", "head_count_kv"]),
        ({"llama.attention.head_count_kv": U32(3)}, ["4 heads", "3 KV heads"]),
        ({"llama.attention.head_count_kv": np.array([2, 1], np.int32)}, ["head_count_kv' is [2, 1]", "layers"]),
        ({"llama.attention.head_count_kv": np.array([], np.int32)}, ["head_count_kv' is []", "at least 1"]),
        ({"llama.block_count": "two"}, ["'llama.block_count' is 'two'", "at least 1"]),
        ({"llama.embedding_length": U32(0)}, ["'llama.embedding_length' is 0", "at least 1"]),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, ["rms_epsilon' is nan", "number above 0"]),
        ({"llama.rope.scaling.factor": -4.0}, ["'llama.rope.scaling.factor' is -4.0", "number above 0"]),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_a_model_that_is_not_supported_says_why(
    firstdiff: Command, tmp_path: Path, metadata: dict[str, Any], words: list[str]
) -> None:
    path = synthetic(tmp_path / "bad.gguf", TINY, metadata=metadata)
    assert_refused(firstdiff("run", path), 3, str(path), *words)


@pytest.mark.parametrize(
    "name",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_a_missing_hyperparameter_is_named(firstdiff: Command, tmp_path: Path, name: str) -> None:
    path = synthetic(tmp_path / "bad.gguf", TINY, metadata={f"llama.{name}": None})
    assert_refused(firstdiff("run", path), 3, str(path), f"'llama.{name}' is missing", "convert it again")


@pytest.mark.parametrize("name", ["token_embd.weight", Q, "blk.0.ffn_norm.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(firstdiff: Command, tmp_path: Path, name: str) -> None:
    path = synthetic(tmp_path / "bad.gguf", TINY, tensors={name: None})
    assert_refused(firstdiff("run", path), 3, str(path), f"'{name}' is missing", "convert or fetch it again")


def test_a_model_of_more_layers_than_it_holds_lacks_a_tensor(firstdiff: Command, tmp_path: Path) -> None:
    path = synthetic(tmp_path / "bad.gguf", TINY, metadata={"llama.block_count": U32(1 << 30)})
    assert_refused(firstdiff("run", path), 3, str(path), "'blk.2.attn_q.weight' is missing")


def test_a_tensor_of_another_shape_is_named_with_both(firstdiff: Command, tmp_path: Path) -> None:
    name = "blk.0.ffn_down.weight"
    path = synthetic(tmp_path / "bad.gguf", TINY, tensors={name: dataclasses.replace(tensor_of(name), ne=(64, 128))})
    assert_refused(firstdiff("run", path), 3, str(path), name, "[128, 64]", "[64, 128]", "convert")


def test_heads_that_cannot_be_rotated_in_pairs_never_reach_llama_cpp(firstdiff: Command, tmp_path: Path) -> None:
    path = synthetic(tmp_path / "bad.gguf", shape=dataclasses.replace(TINY, head_dim=15))
    assert_refused(firstdiff("run", path, "--tokens", TOKENS), 3, str(path), "15 dimensions", "key_length")


def test_a_tensor_that_the_reference_would_ignore_is_refused(firstdiff: Command, tmp_path: Path) -> None:
    extra = stored(np.ones(16, np.float32))
    path = synthetic(tmp_path / "bad.gguf", TINY, tensors={f"blk.{i}.attn_q_norm.weight": extra for i in range(2)})
    assert_refused(firstdiff("run", path), 3, str(path), "'blk.0.attn_q_norm.weight' (and 1 more)", "another model")


@pytest.mark.llama
def test_a_model_that_llama_cpp_does_not_load_says_llama_cpps_reason(firstdiff: Command, tmp_path: Path) -> None:
    path = synthetic(tmp_path / "bad.gguf", TINY, metadata={"tokenizer.ggml.model": "telepathy"})
    ran = firstdiff("run", path, "--tokens", TOKENS)
    assert_refused(ran, 3, str(path), "llama.cpp does not load this file", "unknown tokenizer: 'telepathy'")


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


# Traces


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


def test_an_interrupted_command_says_so(firstdiff: Command, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(certificate, "certify", interrupt)
    assert_refused(firstdiff("run", model), 130, "interrupted")


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


# llama.cpp


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


# Through a process of its own


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
