"""Both tiers on the same traces: what an architecture file says of each site, and what llama.cpp's graph says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builders.hypotheses import plant
from builders.models import SMOLLM2
from builders.tiny_models import tiny
from firstdiff.dumps import Trace
from firstdiff.engines.opening import open_reference
from firstdiff.errors import UsageError
from firstdiff.model.arithmetic import F32
from firstdiff.model.engine import ARCHITECTURES, open_model
from firstdiff.runs.judge import judge
from firstdiff.runs.recording import record_llama
from firstdiff.runs.run import Run
from firstdiff.runs.tiers import check_described, compared, disagreements
from firstdiff.verdict import Status, Verdict

pytestmark = pytest.mark.llama

TOKENS = [1, 5, 9, 17, 33, 60, 61]
OPTIONAL = {"llama": r"attn_[qkv].bias|rope_freqs.*", "qwen2": "", "qwen3": ""}
"""Tensors that a file may have beside those that it must have."""


def by(tier: str, path: Path, trace: Trace) -> Verdict:
    return judge(Run(open_reference(path, tier=tier)), trace)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_tiers_agree_about_every_site_of_llama_cpp(arch: str, tmp_path: Path) -> None:
    path = tiny(arch, tmp_path, optional=OPTIONAL[arch])
    run = Run(open_model(path), out=tmp_path / "out")
    recorded = record_llama(run, [TOKENS, [4], [8]], tmp_path / "out" / "llama.cpp")
    hand, graph = by("hand", path, recorded.trace), by("graph", path, recorded.trace)
    assert {s.site for s in hand.sites} == {s.site for s in graph.sites}
    assert {s.status for s in (*hand.sites, *graph.sites)} == {Status.AGREES}
    assert "agree about every one of them" in compared(hand, graph).notes[-1]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_tiers_agree_about_what_is_wrong(arch: str, tmp_path: Path) -> None:
    path = tiny(arch, tmp_path)
    bugs = ("rope-base", 1), ("scale-missing", 2), ("activation-wrong", 3), ("weight-transposed", 0)
    trace, _ = plant(open_model(path), TOKENS, *bugs, arithmetic=F32, decode=2)
    hand, graph = by("hand", path, trace), by("graph", path, trace)
    assert {s.site for s in hand.diverging} == {s.site for s in graph.diverging} != set()
    assert {e.hypothesis for e in hand.explanations} == {e.hypothesis for e in graph.explanations}
    assert disagreements(hand, graph) == []


def test_both_tiers_agree_about_a_real_model(tmp_path: Path) -> None:
    trace, _ = plant(open_model(SMOLLM2), TOKENS, ("norm-eps", 3), ("rope-pairing", 7), arithmetic=F32)
    hand, graph = by("hand", SMOLLM2, trace), by("graph", SMOLLM2, trace)
    assert len(hand.diverging) > 2
    assert disagreements(hand, graph) == []


def test_a_disagreement_is_told_with_both_errors(tmp_path: Path) -> None:
    path = tiny("llama", tmp_path)
    trace, _ = plant(open_model(path), TOKENS, ("rope-base", 1), arithmetic=F32)
    hand = by("hand", path, trace)
    sites = tuple(
        replace(s, status=Status.AGREES, local_error=1e-7) if s.site == hand.diverging[0].site else s
        for s in hand.sites
    )
    said = compared(hand, replace(hand, sites=sites)).notes[-1]
    assert "the tiers disagree at 1 of the" in said
    assert "Qcur_rope-1 diverges by the description" in said
    assert "agrees by the graph (1e-07)" in said


def test_a_model_that_is_described_in_part_falls_to_the_graph(tmp_path: Path) -> None:
    path = tiny("llama", tmp_path, keys={"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0})
    model = open_reference(path)
    assert model.tier == "graph"
    assert "does not cover this file" in model.written.why  # type: ignore[attr-defined]
    assert "'llama.rope.scaling.type' is 'yarn'" in model.written.why  # type: ignore[attr-defined]
    run = Run(model, out=tmp_path / "out")
    verdict = judge(run, record_llama(run, [TOKENS, [4]], tmp_path / "out" / "llama.cpp"))
    assert verdict.verdict == "agrees"
    assert verdict.notes[-1].startswith(model.written.why)  # type: ignore[attr-defined]


def test_both_tiers_need_a_description() -> None:
    with pytest.raises(UsageError, match="does not describe the architecture 'gemma3' itself"):
        check_described("gemma3")
    check_described("llama")
