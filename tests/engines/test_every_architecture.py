"""llama.cpp as a candidate: what it computed at each point of its graph is what the graph's calls compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.every_architecture import ARCHITECTURES, ENCODER_AND_DECODER, toy
from builders.models import quantised
from firstdiff.engines.opening import open_reference
from firstdiff.runs.judge import judge
from firstdiff.runs.recording import record_llama
from firstdiff.runs.run import Run
from firstdiff.verdict import Status

pytestmark = pytest.mark.llama

STEPS = [list(range(3, 12)), [7], [8]]
SEEN = ("gemma3", "gpt-oss", "phi3", "mamba2", "deepseek2", "rwkv7", "qwen3moe", "bert")


def assert_agrees(path: Path, folder: Path) -> None:
    run = Run(open_reference(path, tier="graph"), out=folder)
    verdict = judge(run, record_llama(run, STEPS, folder / "llama.cpp"))
    others = [s for s in verdict.sites if s.status is not Status.AGREES]
    assert [(str(s.site), s.status, s.local_error, s.reason) for s in others] == []
    assert len(verdict.sites) > 30


@pytest.mark.parametrize("arch", SEEN)
def test_every_point_agrees(arch: str, tmp_path: Path) -> None:
    assert_agrees(toy(arch, tmp_path), tmp_path / "out")


@pytest.mark.sweep
@pytest.mark.parametrize("arch", [a for a in ARCHITECTURES if a not in (*ENCODER_AND_DECODER, *SEEN)])
def test_every_point_of_any_architecture_agrees(arch: str, tmp_path: Path) -> None:
    assert_agrees(toy(arch, tmp_path), tmp_path / "out")


@pytest.mark.parametrize("arch", ["gemma3", "gpt-oss", "mamba2"])
@pytest.mark.parametrize("kind", ["Q8_0", "IQ4_XS", "MXFP4"])
def test_every_point_agrees_with_quantised_weights(arch: str, kind: str, tmp_path: Path) -> None:
    types = {"Q8_0": 7, "IQ4_XS": 30, "MXFP4": 38}
    path = quantised(toy(arch, tmp_path), types[kind], tmp_path / "quantised.gguf", pure=False)
    assert_agrees(path, tmp_path / "out")
