"""Digests of model files: of large ones they are kept; what has changed or is damaged is read anew."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firstdiff.engines import digests


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 1000)
    return tmp_path / "cache" / "firstdiff" / "sha256.json"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read, in this process or as a new one would."""
    seen: list[Path] = []
    real = digests._read
    monkeypatch.setattr(digests, "_read", lambda path: (seen.append(path), real(path))[1])
    return seen


def file(path: Path, content: bytes = b"a" * 2000) -> Path:
    path.write_bytes(content)
    os.utime(path, (1, 1))
    return path


def as_a_new_process(path: Path) -> str:
    digests._digest.cache_clear()
    return digests.digest(path).hex()


def long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has just been written counts as settled: its ctime cannot be set."""
    monkeypatch.setattr(digests, "SETTLED", -1)


def test_a_large_file_is_read_once(
    place: Path, read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago(monkeypatch)
    model = file(tmp_path / "model")
    wanted = hashlib.sha256(model.read_bytes()).hexdigest()
    assert [as_a_new_process(model) for _ in range(3)] == [wanted] * 3
    assert read == [model]
    assert list(json.loads(place.read_text()).values()) == [wanted]


def test_a_small_file_is_read_each_time_and_nothing_is_kept(place: Path, read: list[Path], tmp_path: Path) -> None:
    model = file(tmp_path / "model", b"a")
    assert len({as_a_new_process(model) for _ in range(2)}) == 1
    assert len(read) == 2
    assert not place.exists()


def test_a_file_that_has_just_changed_is_not_kept(place: Path, tmp_path: Path) -> None:
    as_a_new_process(file(tmp_path / "model"))
    assert not place.exists()


def test_a_changed_file_is_read_again(
    place: Path, read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago(monkeypatch)
    model = file(tmp_path / "model")
    before = as_a_new_process(model)
    model.write_bytes(b"b" * 2000)
    assert as_a_new_process(model) != before
    assert len(read) == 2


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no json": lambda path: path.write_text("{"),
    "no object": lambda path: path.write_text("[1]"),
    "no digest": lambda path: path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), "zz"))),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_not_believed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    long_ago(monkeypatch)
    model = file(tmp_path / "model")
    right = as_a_new_process(model)
    DAMAGES[damage](place)
    assert as_a_new_process(model) == right
