"""What tests of the doors share."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.models import synthetic


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic llama."""
    return synthetic(tmp_path_factory.mktemp("model"))
