"""How large the terms of a product are: in float32 products, whatever a misread weight holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.models import in_blocks_of_ggml
from firstdiff.model.engine import open_model
from firstdiff.model.operations import linear
from firstdiff.model.probe import Call
from firstdiff.model.terms import terms


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("of_x", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("kind", ["Q4_K", "Q4_1", "F16"])
def test_the_terms_are_those_of_float64(llama: None, tmp_path: Path, kind: str, scale: float, of_x: float) -> None:
    """Minima are the file's own, even where a hypothesis reads the numbers otherwise."""
    weight = open_model(in_blocks_of_ggml(kind, tmp_path, n_layer=1, n_embd=256, n_ff=256)).weights.layer(0)[
        "ffn_gate.weight"
    ]
    filed = weight.values().astype(np.float64)
    misread = replace(weight, decode=lambda raw, _: (filed.reshape(len(raw), -1) * scale).astype(np.float32))
    x = (np.random.default_rng(0).standard_normal((5, 256)) * of_x).astype(np.float32)
    found = terms(Call(0, 0, "ffn_gate", linear, (x, misread), {}))
    wide, minima = x.astype(np.float64), weight.minimum_of_each(0, weight.shape[0])
    squares = wide**2 @ ((filed * scale) ** 2).T
    if minima is not None:
        squares += (wide @ minima.astype(np.float64).T) ** 2
    assert found is not None
    wanted = np.sqrt(squares)
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-5 * wanted.max())  # products with minima cancel
