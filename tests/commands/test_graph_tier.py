"""``firstdiff run`` on architectures that nobody has written out by hand: llama.cpp judged by its own graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.command_line import TOKENS, Command, assert_refused
from builders.every_architecture import toy
from builders.tiny_models import tiny
from firstdiff.runs.tiers import BELIEVED
from firstdiff.verdict import Status
from firstdiff.verdict.reading import read_verdict

pytestmark = pytest.mark.llama


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("gemma3", tmp_path_factory.mktemp("gemma"), n_layer=2)


def test_a_model_of_any_architecture_is_judged_by_its_graph(firstdiff: Command, gemma: Path, tmp_path: Path) -> None:
    ran = firstdiff("run", gemma, "--tokens", TOKENS, "--out", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    assert "recorded sites agrees" in ran.out
    assert "llama.cpp:cpu against graph:ggml-cpu" in ran.out
    assert " ".join(BELIEVED.split()[:5]) in ran.out
    verdict = read_verdict(tmp_path / "out" / "verdict.json")
    assert verdict.model["architecture"] == "gemma3"
    assert {s.status for s in verdict.sites} == {Status.AGREES}
    assert firstdiff("report", tmp_path / "out" / "verdict.json").code == 0


def test_a_page_and_json_are_made_of_it(firstdiff: Command, gemma: Path, tmp_path: Path) -> None:
    ran = firstdiff("run", gemma, "--tokens", TOKENS, "--html", tmp_path / "page.html", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["against"] == "graph:ggml-cpu"
    assert "ffn_geglu" in (tmp_path / "page.html").read_text()


def test_both_tiers_judge_a_model_that_both_can(firstdiff: Command, model: Path) -> None:
    for tier in ("hand", "graph"):
        ran = firstdiff("run", model, "--tokens", TOKENS, "--tier", tier)
        assert ran.code == 0
        assert ("graph:ggml-cpu" in ran.out) == (tier == "graph")


def test_a_text_is_tokenised_by_llama_cpp(firstdiff: Command, gemma: Path) -> None:
    assert firstdiff("run", gemma, "--prompt", "abc").code == 0


def test_what_only_a_reference_written_by_hand_can_do_is_refused(
    firstdiff: Command, gemma: Path, model: Path, trace: Path
) -> None:
    ran = firstdiff("run", gemma, "--tier", "hand")
    assert_refused(ran, 3, "'gemma3'", "supported: llama", "leave --tier out")
    assert_refused(firstdiff("run", gemma, "--tier", "both"), 2, "does not describe the architecture 'gemma3' itself")
    plain = "run", model, "--tier", "graph", "--candidate", trace
    assert_refused(firstdiff(*plain, "--kv", "q8_0"), 2, "--flash-attention and --kv", "leave them out")
    assert firstdiff(*plain).code == firstdiff("run", model, "--candidate", trace).code


def test_tokens_that_cannot_be_run_are_refused(firstdiff: Command, gemma: Path) -> None:
    assert_refused(firstdiff("run", gemma, "--tokens", "1,9999"), 3, "9999", "vocabulary (0 to 383)")


def test_an_encoder_with_a_decoder_is_refused(firstdiff: Command, tmp_path: Path) -> None:
    assert_refused(firstdiff("run", toy("t5", tmp_path), "--tokens", "3,4"), 3, "an encoder and a decoder")
