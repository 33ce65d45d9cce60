from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path() -> str:
    return str(Path(__file__).parent / "tiny.gguf")
