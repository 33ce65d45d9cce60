"""Models in several files: any part opens them all, and parts that do not fit are refused."""

from pathlib import Path
from typing import Any

import pytest

from builders.gguf_bytes import STRING, U32, built, entry, pair, refusal, text, u32
from firstdiff.model.errors import ModelError
from firstdiff.model.gguf import open_gguf


def part(number: int, count: int, names: list[str], total: int | None = None, **options: Any) -> bytes:
    numbers = {"split.no": number, "split.count": count, "split.tensors.count": total}
    pairs = [pair(key, U32, u32(value)) for key, value in numbers.items() if value is not None]
    entries = [entry(name, offset=128 * index) for index, name in enumerate(names)]
    data = b"".join(bytes([ord(name[0])]) * 128 for name in names)
    return built([pair("part", STRING, text(f"{number}")), *pairs], entries, data, **options)


def split_model(folder: Path, *contents: bytes | None) -> list[Path]:
    paths = [folder / f"m-{n:05}-of-{len(contents):05}.gguf" for n in range(1, len(contents) + 1)]
    for path, content in zip(paths, contents, strict=True):
        if content is not None:
            path.write_bytes(content)
    return paths


@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_part_opens_the_whole_split_model(tmp_path: Path, which: int) -> None:
    contents = [part(0, 3, ["a", "b"], 3), part(1, 3, []), part(2, 3, ["c"])]
    paths = split_model(tmp_path, *contents)
    model = open_gguf(paths[which])
    assert model.path == paths[0]
    assert model.files == tuple(paths)
    assert model.metadata["part"] == "0"
    assert {name: info.path for name, info in model.tensors.items()} == {
        "a": paths[0],
        "b": paths[0],
        "c": paths[2],
    }
    assert {name: bytes(model.raw(name)[:1]) for name in model.tensors} == {"a": b"a", "b": b"b", "c": b"c"}


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = split_model(tmp_path, part(0, 2, ["a"], 2), None)
    with pytest.raises(ModelError, match=r"m-00002-of-00002.gguf: part 2 of 2 is missing: fetch it"):
        open_gguf(paths[0])


def test_a_part_that_was_renamed_is_refused(tmp_path: Path) -> None:
    paths = split_model(tmp_path, part(1, 2, ["a"], 2), part(0, 2, ["b"]))
    with pytest.raises(ModelError, match=r"says it is part 2 of 2, where its name says 1 of 2"):
        open_gguf(paths[0])


def test_a_part_whose_name_does_not_lead_to_the_others_is_refused(tmp_path: Path) -> None:
    assert "so the others cannot be found" in refusal(tmp_path, part(0, 2, ["a"], 2))


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ([part(0, 2, ["a"], 3), part(1, 2, ["b"])], "says the model has 3 tensors, its 2 parts hold 2"),
        ([part(0, 2, ["a"], 2), part(1, 2, ["a"])], "tensor 'a' is in m-00001-of-00002.gguf too"),
        ([part(0, 2, ["a"], 2), b"GGUF"], "the version ends 4 bytes past the end"),
        (
            [part(0, 2, ["a"], 2), built(entries=[entry("b")])],
            "says it is part 1 of 1, where its name says 2 of 2",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, contents: list[bytes], reason: str) -> None:
    paths = split_model(tmp_path, *contents)
    with pytest.raises(ModelError, match=reason):
        open_gguf(paths[0])
