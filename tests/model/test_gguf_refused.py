"""Files that are no model, or a damaged one: what the GGUF reader refuses them with, by its own rules."""

import os
import struct
from pathlib import Path

import pytest
from gguf import GGUFEndian

from builders.gguf_bytes import (
    ARRAY,
    Q8_0,
    STRING,
    U32,
    U64,
    array,
    built,
    entry,
    opened,
    pair,
    refusal,
    tensors,
    text,
    u32,
    written,
)
from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import open_gguf

# Files that are no model.


def test_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing.gguf: no such file: check the path"):
        open_gguf(tmp_path / "nothing.gguf")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder, where a GGUF file is wanted"):
        open_gguf(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="is no regular file"):
        open_gguf(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["nul\0.gguf", "long" * 1000, "model.gguf/inside"])
def test_an_impossible_path_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.gguf").write_bytes(built())
    with pytest.raises(ModelError, match="cannot be read"):
        open_gguf(tmp_path / name)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, b"") == "is empty (0 bytes): the download never began, fetch it again"


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"hello world", "begins with b'hell' in place of b'GGUF': check the path"),
        (b"PK\x03\x04rest", "it is a zip archive"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"tjgg\x03\0\0\0", "a GGML file from before GGUF"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_what_it_looks_like(tmp_path: Path, data: bytes, looks: str) -> None:
    assert looks in refusal(tmp_path, data)


@pytest.mark.parametrize(
    ("version", "advice"), [(0, "convert it again"), (1, "convert it again"), (99, "take a newer firstdiff")]
)
def test_other_versions_are_refused_by_number(tmp_path: Path, version: int, advice: str) -> None:
    message = refusal(tmp_path, built(version=version))
    assert message.startswith(f"is GGUF version {version}, this reader knows 2 and 3: ")
    assert message.endswith(advice)


def test_a_big_endian_file_is_named_as_such(tmp_path: Path) -> None:
    path = written(tmp_path / "big.gguf", tensors, endianess=GGUFEndian.BIG)
    with pytest.raises(ModelError, match=r"is big-endian \(version 3 .* gguf_convert_endian.py"):
        open_gguf(path)


# Damaged files. Each case: the bytes, and what the refusal says.

GOOD = built(
    [pair("a", U32, u32(1)), pair("words", ARRAY, array(STRING, 2, text("x") + text("yz")))],
    [entry("first"), entry("second", offset=128)],
    bytes(256),
)
NESTED = u32(ARRAY) + struct.pack("<Q", 1)

DAMAGED = {
    "cut in the version": (GOOD[:6], "the version ends 2 bytes past the end of the file"),
    "cut in the counts": (built()[:20], "the number of metadata keys ends 4 bytes past the end"),
    "cut in a key": (
        built([text("general")[:-2]], keys=1, data=b"", align=1),
        "metadata key 0 of 1 ends 2 bytes",
    ),
    "cut in the metadata": (GOOD[:88], "the value of 'words' ends 1 byte past the end"),
    "cut in the table": (GOOD[:140], "the number of dimensions of tensor 'second' ends 4 bytes"),
    "cut in the data": (
        GOOD[:-1],
        (
            f"tensor 'second' ends 1 byte past the end of the file (offset {len(GOOD) - 128}, size 128, "
            f"file size {len(GOOD) - 1}): the download is probably cut short"
        ),
    ),
    "2^60 tensors": (built(tensors=2**60), "declares 1,152,921,504,606,846,976 tensors at offset 8"),
    "2^60 keys": (built(keys=2**60), "declares 1,152,921,504,606,846,976 metadata keys at offset 16"),
    "a key of 1 TB": (built([struct.pack("<Q", 2**40)], keys=1), "metadata key 0 of 1 ends 1,099,511,627"),
    "a string of 1 TB": (
        built([pair("s", STRING, struct.pack("<Q", 2**40))]),
        "the value of 's' ends 1,099,5",
    ),
    "an array of 2^61 numbers": (
        built([pair("n", ARRAY, array(U64, 2**61))]),
        "declares 2,305,843,009,213,693,952 array elements in the value of 'n'",
    ),
    "an array of 2^61 strings": (
        built([pair("n", ARRAY, array(STRING, 2**61))]),
        "array elements in the value",
    ),
    "an array of 2^61 arrays": (
        built([pair("n", ARRAY, array(ARRAY, 2**61))]),
        "array elements in the value",
    ),
    "a string of 2^64 bytes in an array": (
        built([pair("n", ARRAY, array(STRING, 1, struct.pack("<Q", 2**64 - 1)))]),
        "the file is damaged",
    ),
    "an unknown value type": (built([pair("k", 13, bytes(8))]), "has type 13, where GGUF knows 0 to 12"),
    "an unknown element type": (
        built([pair("k", ARRAY, array(77, 0))]),
        "has type 77, where GGUF knows 0 to 12",
    ),
    "arrays nested too deep": (built([pair("k", ARRAY, NESTED * 9)]), "nests arrays more than 8 deep"),
    "a key twice": (built([pair("k", U32, u32(1))] * 2), "metadata key 'k' comes twice, as key 0 and 1"),
    "a key that is not UTF-8": (built([pair(b"k\xff", U32, u32(1))]), r"is not UTF-8 (byte 1 of b'k\xff')"),
    "alignment 0": (built([pair("general.alignment", U32, u32(0))]), "general.alignment is 0, where GGUF"),
    "alignment 48": (built([pair("general.alignment", U32, u32(48))]), "general.alignment is 48, where GGUF"),
    "alignment as text": (
        built([pair("general.alignment", STRING, text("32"))]),
        "general.alignment is a str",
    ),
    "an alignment beyond the file": (
        built([pair("general.alignment", U64, struct.pack("<Q", 2**63))], [entry()]),
        "tensor 't' ends",
    ),
    "a tensor twice": (
        built(entries=[entry(), entry(offset=128)], data=bytes(256)),
        "tensor 't' comes twice",
    ),
    "a tensor name that is not UTF-8": (
        built(entries=[entry(b"\xff")]),
        "the name of tensor 0 of 1 at offset",
    ),
    "an offset past the file": (built(entries=[entry(offset=32)]), "tensor 't' ends 32 bytes past the end"),
    "an offset near 2^64": (built(entries=[entry(offset=2**64 - 32)]), "the file is damaged"),
    "a misaligned offset": (
        built(entries=[entry(offset=8)], data=bytes(256)),
        "no multiple of the alignment 32",
    ),
    "overlapping tensors": (
        built(entries=[entry("a"), entry("b", offset=96)], data=bytes(256)),
        "size 128) overlaps tensor 'b'",
    ),
    "a size beyond 64 bits": (built(entries=[entry(ne=(2**62, 2**62))]), "the file is damaged"),
    "five dimensions": (
        built(entries=[entry(ne=(1,) * 5)]),
        "tensor 't' has 5 dimensions, where ggml allows 1 to 4",
    ),
    "2^32 dimensions": (built(entries=[entry(dims=2**32 - 1)]), "tensor 't' has 4,294,967,295 dimensions"),
    "no dimensions": (built(entries=[entry(dims=0)]), "tensor 't' has 0 dimensions"),
    "a dimension of 0": (built(entries=[entry(ne=(32, 0))]), "tensor 't' has dimensions [32, 0]"),
    "a row of half a block": (
        built(entries=[entry(ne=(48, 2), kind=Q8_0)]),
        "dimensions [48, 2] (row length first), where Q8_0 takes rows of a positive multiple of 32",
    ),
    "an unknown quantisation": (built(entries=[entry(kind=999)]), "tensor 't' has quantisation type 999"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_with(tmp_path: Path, damage: str) -> None:
    data, reason = DAMAGED[damage]
    assert reason in refusal(tmp_path, data)


def test_the_undamaged_file_is_not_refused(tmp_path: Path) -> None:
    assert list(opened(tmp_path, GOOD).tensors) == ["first", "second"]


def test_a_long_or_odd_name_stays_one_short_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, built(entries=[entry("line\n\x1b[31m" + "x" * 5000, kind=999)]))
    assert r"'line\n\x1b[31mxxx" in message
    assert len(message) < 300
