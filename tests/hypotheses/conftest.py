"""What tests of hypotheses share."""

from __future__ import annotations

import pytest

from builders.models import Bytes, quantised_weights


@pytest.fixture(scope="session")
def quantised_raw(llama: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bytes]:
    """The bytes of one weight by the type that it was quantised to."""
    return quantised_weights(tmp_path_factory.mktemp("quantised"))
