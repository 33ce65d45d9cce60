"""A model, and a right engine's dump of it."""

from __future__ import annotations

import pytest

from builders.hypotheses import plant
from builders.models import synthetic
from builders.wrong_dumps import PROMPT
from firstdiff.dumps import Trace
from firstdiff.model.engine import Model, open_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("dump"), n_layer=4))


@pytest.fixture(scope="module")
def clean(model: Model) -> Trace:
    """A prompt and two more tokens, by a right engine."""
    return plant(model, PROMPT, decode=2)[0]
