from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import numpy as np

import harness
import model


def test_its_modules_are_its_own() -> None:
    here = Path(__file__).parent
    assert {Path(m.__file__).parent for m in (engine, harness, model)} == {here}


def test_softmax_sums_to_one() -> None:
    assert np.allclose(engine.softmax(np.arange(6.0).reshape(2, 3)).sum(-1), 1)


def test_every_tensor_is_right(path: str, tmp_path: Path, firstdiff: Any) -> None:
    harness.run(path, [1, 80, 90], 1, str(tmp_path / "dump"))
    verdict = firstdiff.check(path, tmp_path / "dump")
    assert verdict.coverage["recorded"] == verdict.coverage["sites"]
