"""What is read of a layer by matrices around it: how exact it is, and what is not believed of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builders.black_boxes import ReferenceBox
from builders.models import in_blocks, synthetic
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.engine import open_model
from firstdiff.probing.probing import probe
from firstdiff.probing.within import NEARLY, at_its_size, common_factor
from firstdiff.runs.run import Run
from firstdiff.verdict import Status

RNG = np.random.default_rng(3)


def test_rows_that_are_hardly_off_in_size_are_set_right() -> None:
    right = RNG.standard_normal((4, 32))
    found = right * (1 + np.array([0.0, 0.5, -0.5, 0.9]) * NEARLY)[:, None]
    assert np.abs(at_its_size(found, right) - right).max() < 1e-12


@pytest.mark.parametrize("factor", [1 + 3 * NEARLY, 1.01, 2.0, -1.0])
def test_rows_of_another_size_stay_what_they_are(factor: float) -> None:
    right = RNG.standard_normal((4, 32))
    assert np.array_equal(at_its_size(factor * right, right), factor * right)


@pytest.mark.parametrize("factor", [0.99994, 1.00006, 1.002])
def test_one_factor_of_all_rows_is_a_matrix_that_is_held_in_fewer_digits(factor: float) -> None:
    right = RNG.standard_normal((4, 32))
    assert common_factor(factor * right, right) == pytest.approx(factor, abs=1e-9)


def test_other_differences_are_no_such_factor() -> None:
    right = RNG.standard_normal((4, 32))
    by_row = right * (1 + 1e-4 * np.arange(4))[:, None]
    for found in (right, 2 * right, 1.05 * right, by_row, right + 1e-4 * RNG.standard_normal(right.shape)):
        assert common_factor(found, right) is None


@pytest.mark.parametrize("count", [2, 5, 8, 13])
def test_tensors_beside_a_gate_are_read_to_the_floor_of_single_operations(tmp_path: Path, count: int) -> None:
    """The number that the gate is at comes from one input, which may be a hundred times less exact than a row."""
    model = open_model(synthetic(tmp_path / "model.gguf", n_layer=3, n_embd=128, n_ff=96))
    tokens = tuple(int(token) for token in np.random.default_rng(count).choice(np.arange(3, 300), count, replace=False))
    folder = tmp_path / "probes"
    folder.mkdir()
    verdict = probe(Run(model), ReferenceBox(), tokens, folder)
    assert verdict.verdict == "agrees", verdict.first
    assert all((s.local_error or 0.0) < 2e-6 for s in verdict.sites if s.status is Status.AGREES)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_an_engine_that_holds_matrices_of_ours_in_fewer_digits_agrees(tmp_path: Path, kind: str) -> None:
    """Of a Q8_0 file nothing shows that it holds all matrices so, until it is given matrices in float32."""
    model = open_model(in_blocks(kind, tmp_path, n_layer=3))
    folder = tmp_path / "probes"
    folder.mkdir()
    box = ReferenceBox(arithmetic=arithmetic_named("f32+matrices=q8_0"))
    verdict = probe(Run(model), box, (300, 45, 301, 17, 260, 303, 99, 46), folder)
    assert verdict.verdict == "agrees", verdict.first
    if kind == "Q8_0":
        assert any("as storage in 8 bits (Q8_0) does" in note for note in verdict.notes)
    wrong = ReferenceBox([Planted(TABLE["gate-up-swapped"], 1)], arithmetic=arithmetic_named("f32+matrices=q8_0"))
    told = probe(Run(model), wrong, (300, 45, 301, 17, 260, 303, 99, 46), folder)
    assert told.first is not None
    assert told.first.layer == 1
