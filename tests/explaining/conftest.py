"""What tests of explaining share."""

from __future__ import annotations

import pytest

from builders.command_line import firstdiff
from builders.models import in_blocks
from firstdiff.model.engine import Model, open_model

__all__ = ["firstdiff"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A synthetic llama of six layers in Q4_1, with biases."""
    return open_model(in_blocks("Q4_1", tmp_path_factory.mktemp("small"), n_layer=6, biases=True))
