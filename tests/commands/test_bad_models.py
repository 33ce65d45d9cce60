"""Models that cannot be read or run, through the real command line: one clear line, exit code 3, no traceback."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.command_line import TOKENS, Command, assert_refused
from builders.models import TINY, Stored, stored, synthetic, tensor_of
from firstdiff.model.synthetic import Llama

Q = "blk.1.attn_q.weight"
WIDE = Llama(n_layer=1, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_vocab=320)
U32 = np.uint32


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


@pytest.mark.parametrize(("kind", "name", "block"), [(15, "Q8_K", 292), (24, "I8", 256), (28, "F64", 8 * 256)])
def test_a_quantisation_type_that_is_not_supported_is_named(
    firstdiff: Command, tmp_path: Path, kind: int, name: str, block: int
) -> None:
    tensor = Stored((256, 256), kind, bytes(256 * block))
    path = synthetic(tmp_path / "bad.gguf", shape=WIDE, tensors={"blk.0.attn_q.weight": tensor})
    ran = firstdiff("run", path)
    assert_refused(ran, 3, str(path), "'blk.0.attn_q.weight'", name, "supported: BF16, F16, F32, IQ1_M", "requantise")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
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
    assert_refused(firstdiff("run", path, "--tier", "hand"), 3, str(path), *words)


def test_an_architecture_without_a_reference_is_named(firstdiff: Command, tmp_path: Path) -> None:
    path = synthetic(tmp_path / "bad.gguf", TINY, metadata={"general.architecture": "mamba"})
    assert_refused(
        firstdiff("run", path, "--tier", "hand"), 3, str(path), "'mamba'", "supported: llama", "leave --tier out"
    )


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
    words = "'blk.0.attn_q_norm.weight' (and 1 more)", "another model"
    assert_refused(firstdiff("run", path, "--tier", "hand"), 3, str(path), *words)


@pytest.mark.llama
def test_a_model_that_llama_cpp_does_not_load_says_llama_cpps_reason(firstdiff: Command, tmp_path: Path) -> None:
    path = synthetic(tmp_path / "bad.gguf", TINY, metadata={"tokenizer.ggml.model": "telepathy"})
    ran = firstdiff("run", path, "--tokens", TOKENS)
    assert_refused(ran, 3, str(path), "llama.cpp does not load this file", "unknown tokenizer: 'telepathy'")
