"""What tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.command_line import firstdiff
from builders.engines import recorded_by_reference
from builders.models import TINY, synthetic
from builders.own_engine import SHAPE, dumped

__all__ = ["firstdiff"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic llama, as small as one can be."""
    return synthetic(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY)


@pytest.fixture(scope="module")
def trace(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A right engine's trace of one prompt and one decode step."""
    return recorded_by_reference(model, tmp_path_factory.mktemp("trace") / "right")


# Somebody's own engine


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is compiled, and where it leaves its dumps."""
    return tmp_path_factory.mktemp("bring-your-own")


@pytest.fixture(scope="session")
def own_model(bench: Path) -> Path:
    """What it is run on: the model of the modules that test it."""
    return synthetic(bench, **SHAPE)


@pytest.fixture(scope="session")
def clean(compiler: str, bench: Path, own_model: Path) -> Path:
    """What it dumps where it is right."""
    return dumped(bench, own_model)


@pytest.fixture(scope="session")
def wrong(compiler: str, bench: Path, own_model: Path) -> Path:
    """The dump of an engine whose layer 1 pairs the wrong dimensions in rope."""
    return dumped(bench, own_model, "rope-pairing", 1)
