"""Large steps are written a few layers at a time, and scores are kept up to a limit: what is recorded is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builders.models import synthetic
from builders.tiny_models import tiny
from firstdiff.dumps import Trace
from firstdiff.engines import llamacpp_capture, llamacpp_points
from firstdiff.runs.prompt import Input
from firstdiff.runs.recording import record

TOKENS = (1, 70, 71, 72, 73)


def recorded(model: Path, out: Path) -> Trace:
    return record(model, Input(tokens=TOKENS), out, engine="llama.cpp:cpu", decode=1, threads=1)


@pytest.mark.parametrize("kind", ["llama", "qwen3moe"])
def test_what_is_written_while_a_step_runs_is_what_is_written_after_it(
    llama: None, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hook of a description, and by that of a graph."""
    model = synthetic(tmp_path / "model.gguf") if kind == "llama" else tiny(kind, tmp_path)
    whole = recorded(model, tmp_path / "whole")
    for module in (llamacpp_capture, llamacpp_points):
        monkeypatch.setattr(module, "MOST_HELD", 0)
    parts = recorded(model, tmp_path / "parts")
    assert len([*(tmp_path / "parts").glob("step-000.part-*.safetensors")]) > 1
    assert parts.sites() == whole.sites()
    assert parts.steps == whole.steps
    assert all(np.array_equal(parts[site], whole[site]) for site in whole)


def test_scores_count_without_the_padding_of_the_cache(
    llama: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's scores have 256 keys for 5."""
    model = synthetic(tmp_path / "model.gguf")
    held = {}
    for most in (8 * 5 * 5, 8 * 5 * 5 - 1):
        monkeypatch.setattr(llamacpp_capture, "MOST_SCORES", most)
        held[most] = {site.point for site in recorded(model, tmp_path / str(most)) if site.step == 0}
    assert held[200] - held[199] == {"kq", "kq_soft_max"}
