"""The examples in docstrings are run."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from builders.models import synthetic
from firstdiff.model.synthetic import Llama

MODULES = {
    "firstdiff.api": 4,
    "firstdiff.dumps.named_array": 1,
    "firstdiff.dumps.site": 1,
    "firstdiff.model.architecture_names": 1,
    "firstdiff.plot": 2,
}
"""Modules with examples, and how many docstrings have them at least."""


@pytest.mark.notebook
@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_docstrings_are_right(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = synthetic(tmp_path / "model.gguf", Llama())
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = [t for t in doctest.DocTestFinder().find(import_module(module), extraglobs={"model": model}) if t.examples]
    for test in found:
        runner.run(test, out=told.append)
    assert "".join(told) == ""
    assert len(found) >= MODULES[module]
