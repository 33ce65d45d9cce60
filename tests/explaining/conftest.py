"""What tests of explaining share."""

from __future__ import annotations

import pytest

from builders.command_line import firstdiff
from builders.models import FILE_TYPES, quantised, synthetic
from firstdiff.model.engine import Model, open_model

__all__ = ["firstdiff"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A synthetic llama of six layers in Q4_1, with biases."""
    folder = tmp_path_factory.mktemp("small")
    path = synthetic(folder, n_layer=6, biases=True)
    return open_model(quantised(path, FILE_TYPES["Q4_1"], folder / "q4_1.gguf"))
