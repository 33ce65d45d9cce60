"""What tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.command_line import firstdiff
from builders.engines import recorded_by_reference
from builders.models import TINY, synthetic

__all__ = ["firstdiff"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic llama, as small as one can be."""
    return synthetic(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY)


@pytest.fixture(scope="module")
def trace(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A right engine's trace of one prompt and one decode step."""
    return recorded_by_reference(model, tmp_path_factory.mktemp("trace") / "right")
