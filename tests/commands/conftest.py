"""What tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.command_line import firstdiff
from builders.models import TINY, synthetic

__all__ = ["firstdiff"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic llama, as small as one can be."""
    return synthetic(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY)
