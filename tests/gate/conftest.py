"""What tests of the gate share."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.command_line import Command
from builders.engines import recorded_by_reference
from builders.gate import Repository
from builders.models import TINY, synthetic


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a right trace of it, and one with a wrong rope base at layer 1."""
    folder = tmp_path_factory.mktemp("kept")
    model = synthetic(folder / "tiny.gguf", TINY)
    recorded_by_reference(model, folder / "right")
    recorded_by_reference(model, folder / "wrong", ("rope-base", 1))
    return folder


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(capfd)


@pytest.fixture
def repository(kept: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return Repository(kept, command)


@pytest.fixture
def based(repository: Repository) -> Repository:
    """One with a baseline."""
    assert repository.gate("--force-regen").code == 0
    return repository
