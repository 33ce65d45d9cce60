"""transformers' models of families that nobody has described by hand, judged through llama.cpp's graph."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from builders.families import FAMILIES  # noqa: E402 - torch may be missing
from builders.family_faults import FAULTS  # noqa: E402
from builders.family_models import family_model  # noqa: E402
from firstdiff.runs.candidates import judge_candidates  # noqa: E402
from firstdiff.runs.prompt import Input  # noqa: E402
from firstdiff.runs.run import begun  # noqa: E402
from firstdiff.torch import record  # noqa: E402
from firstdiff.verdict import Verdict  # noqa: E402

pytestmark = pytest.mark.llama

TOKENS = list(range(3, 12))


def judged(path: Path, model: Any, folder: Path) -> Verdict:
    """A prompt and two steps of a model, recorded without any option, and judged."""
    record(model, TOKENS, decode=2, out=folder / "trace")
    (done,) = judge_candidates(begun(path, out=folder / "run"), [folder / "trace"], Input())
    return done.verdict


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_right_model_of_any_family_agrees(family: str, dtype: str, tmp_path: Path) -> None:
    path, model = family_model(family, tmp_path, getattr(torch, dtype))
    verdict = judged(path, model, tmp_path)
    assert verdict.verdict == "agrees"
    assert verdict.explanations == ()
    assert verdict.failed == ()
    assert verdict.witness is not None
    assert verdict.witness.diverges == ()
    assert verdict.model["tier"] == "graph"


WITHOUT = {
    "gpt2": ("base",),
    "falcon": ("scale",),
    "gptneox": ("scale",),
    "gpt-oss": ("activation",),
    "nemotron": ("activation",),
    "lfm2": ("scale", "activation"),
    "mamba": ("scale", "transposed", "activation", "base"),
    "mamba2": ("scale", "transposed", "activation", "base"),
}
"""What a family has no part for: gpt2 has no rotation, gpt-oss an activation inside of its experts."""

CASES = [(family, fault) for family in FAMILIES for fault in FAULTS if fault not in WITHOUT.get(family, ())]


@pytest.mark.sweep
@pytest.mark.parametrize(("family", "fault"), CASES)
def test_what_is_wrong_with_a_model_of_any_family_is_named(family: str, fault: str, tmp_path: Path) -> None:
    path, model = family_model(family, tmp_path)
    put = FAULTS[fault]
    assert put.put(model)
    verdict = judged(path, model, tmp_path)
    first = verdict.diverging[0].site
    assert re.fullmatch(put.at, first.point), first
    assert first.layer == put.layer
    assert verdict.failed == ()
    named = {id_ for e in verdict.explanations for id_ in (e.hypothesis, *(t.hypothesis for t in e.equals))}
    assert named & set(put.called), named
