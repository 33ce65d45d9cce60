"""The gate: baselines and limits, and what they make of a change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from builders.engines import compile_engine, run_engine
from builders.gate import CONFIG, PROMPT, SITES, Repository, damaged, scaled, without
from builders.judging import judge
from builders.models import synthetic
from firstdiff.dumps import open_trace
from firstdiff.gate.baseline import GROWN
from firstdiff.model.engine import open_model

# The baseline


def test_the_first_run_writes_the_baseline_and_fails_and_the_second_passes(repository: Repository) -> None:
    first = repository.gate()
    assert (first.code, first.err) == (1, "")
    assert "There was no baseline: firstdiff-baseline/tiny/mine.json is written now." in first.out
    second = repository.gate()
    assert (second.code, second.err) == (0, "")
    assert second.out.startswith("The case passes.\n")
    assert repository.case()["changes"] == {
        "worsened": [], "improved": [], "new": [], "vanished": [], "same": SITES, "common": SITES,
    }  # fmt: skip


def test_force_regen_writes_the_baseline_and_passes(repository: Repository) -> None:
    assert repository.gate("--force-regen").code == 0
    assert repository.gate().code == 0


def test_the_same_trace_gives_the_same_baseline_and_the_same_verdict(repository: Repository) -> None:
    texts = []
    for _ in range(2):
        repository.gate("--force-regen")
        texts.append([repository.baseline.read_bytes(), (repository.out / "tiny/mine/verdict.json").read_bytes()])
    assert texts[0] == texts[1]


def test_a_baseline_is_a_short_line_a_site_and_holds_no_tensor(based: Repository) -> None:
    text = based.baseline.read_text()
    kept = json.loads(text)
    assert kept["columns"] == ["status", "error", "floor", "rms", "hash"]
    assert len(kept["sites"]) == SITES
    assert kept["prompt"] == list(PROMPT)
    assert len(kept["model"]["sha256"]) == 64
    assert max(map(len, text.splitlines())) < 120
    status, error, floor, rms, digest = kept["sites"]["Qcur_rope-1"]
    assert status == "agrees"
    assert error < floor < rms
    assert len(digest) == 16


def test_a_site_that_worsens_fails_with_the_sentence_and_the_explanation(based: Repository) -> None:
    based.holds("wrong")
    ran = based.gate()
    assert (ran.code, ran.err) == (1, "")
    said = " ".join(ran.out.split())
    assert "Qcur_rope-1 is the first to go wrong: rope, local error" in said
    assert "4 sites are worse than in the baseline: Qcur_rope-1 (agrees, now diverges), Kcur_rope-1" in said
    assert "Qcur_rope and Kcur_rope at layer 1: a rope base of 500000" in said
    assert [m["site"] for m in based.case()["changes"]["worsened"]][:2] == ["Qcur_rope-1", "Kcur_rope-1"]


def test_a_tensor_that_is_no_longer_dumped_is_a_failure(based: Repository) -> None:
    based.holds("right", without("kq-1", "kq_soft_max-1"))
    ran = based.gate()
    assert ran.code == 1
    assert based.case()["verdict"] == "agrees"
    said = "2 sites of the baseline are no longer judged: kq-1 (not recorded), kq_soft_max-1 (not recorded)."
    assert based.case()["failures"] == [said]
    assert based.case()["changes"]["vanished"] == [["kq-1", "not recorded"], ["kq_soft_max-1", "not recorded"]]


def test_a_step_that_is_no_longer_run_is_a_failure(based: Repository) -> None:
    based.holds("right", steps=1)
    assert based.gate().code == 1
    assert based.case()["failures"][0].startswith(
        f"{SITES // 2} sites of the baseline are no longer judged: embd@1 (not"
    )
    assert len(based.case()["changes"]["vanished"]) == SITES // 2


def test_new_sites_pass_and_are_said(repository: Repository) -> None:
    repository.holds("right", without("kq-1"))
    repository.gate("--force-regen")
    repository.holds("right")
    ran = repository.gate()
    assert ran.code == 0
    assert "New since the baseline: kq-1." in ran.out
    assert repository.case()["changes"]["new"] == ["kq-1"]


def test_improved_sites_pass_and_are_said(repository: Repository) -> None:
    repository.holds("wrong")
    assert repository.gate("--force-regen").code == 1  # a baseline excuses nothing
    repository.holds("right")
    ran = repository.gate()
    assert ran.code == 0
    assert "Better than in the baseline: Qcur_rope-1, Kcur_rope-1" in ran.out
    assert [m["was"] for m in repository.case()["changes"]["improved"]] == ["diverges"] * 4


@pytest.mark.slow
@pytest.mark.parametrize(("by", "kind"), [(1.3, "worsened"), (1.1, None), (1.03, "improved")])
def test_a_diverging_site_worsens_or_improves_by_a_factor(repository: Repository, by: float, kind: str | None) -> None:
    repository.config(CONFIG + "[limits]\nfloors = 1e9\n")
    repository.holds("right", scaled(1.1, "result_output@1"))
    assert repository.gate("--force-regen").code == 0
    repository.holds("right", scaled(by, "result_output@1"))
    assert repository.gate().code == (1 if kind == "worsened" else 0)
    changes = repository.case()["changes"]
    assert [name for name in ("worsened", "improved") if changes[name]] == ([kind] if kind else [])


def test_errors_below_the_floor_neither_worsen_nor_improve(based: Repository) -> None:
    based.holds("right", scaled(1 + 4e-7, "result_output@1"))
    assert based.gate().code == 0
    changes = based.case()["changes"]
    assert (changes["worsened"], changes["improved"]) == ([], [])
    assert changes["common"] - changes["same"] == 1


@pytest.mark.slow
def test_a_site_that_is_not_finite_is_worse_than_any_number_and_as_bad_as_itself(repository: Repository) -> None:
    repository.config(CONFIG + '[limits]\nfloors = 1e30\nallowed = ["norm-eps"]\n')
    repository.holds("right", scaled(1.5, "result_output@1"))
    repository.gate("--force-regen")
    repository.holds("right", scaled(np.nan, "result_output@1"))
    assert repository.gate().code == 1
    assert [m["site"] for m in repository.case()["changes"]["worsened"]] == ["result_output@1"]
    repository.gate("--force-regen")
    repository.gate()
    assert repository.case()["changes"]["worsened"] == repository.case()["changes"]["improved"] == []


@pytest.mark.compiler
@pytest.mark.parametrize("bug", ["norm-eps-outside", "rope-base"])
def test_a_bug_is_as_large_in_every_build(bug: str, tmp_path: Path) -> None:
    """What GROWN rests on: of all bugs of tests/engines/c/llama.c, norm-eps-outside differs most, by 1.04."""
    shape = {"n_layer": 2, "n_embd": 128, "n_head": 8, "n_head_kv": 4, "head_dim": 16, "n_ff": 192, "n_vocab": 320}
    model = synthetic(tmp_path, rope_base=50000.0, **shape)
    errors = []
    for flags in (("-O0", "-DACCUMULATORS=1"), ("-O2",), ("-O3", "-ffast-math", "-DACCUMULATORS=4")):
        out = tmp_path / flags[0]
        run_engine(compile_engine(tmp_path, bug, None, flags), model, [1, 72, 104, 300, 45], out, decode=0)
        verdict = judge(open_model(model), open_trace(out), table={})
        errors.append({str(s.site): s.local_error or 0.0 for s in verdict.diverging})
    assert errors[0].keys() == errors[1].keys() == errors[2].keys() != set()
    largest = max(max(e[s] for e in errors) / min(e[s] for e in errors) for s in errors[0])
    assert largest < 1.1 < GROWN


@pytest.mark.slow
def test_where_no_bit_changed_the_judgement_is_to_blame(repository: Repository) -> None:
    repository.holds("wrong")
    repository.gate("--force-regen")
    damaged(repository, lambda t: t.replace('"diverges"', '"agrees"'))
    (note,) = repository.case()["notes"]
    assert note.startswith("every tensor is to the bit what it was in the baseline")
    repository.holds("wrong", scaled(1 + 4e-7, "result_output"))
    repository.gate()
    assert repository.case()["notes"] == []


# Limits


@pytest.mark.slow
def test_a_diverging_site_passes_within_a_multiple_of_its_floor(repository: Repository) -> None:
    repository.holds("right", scaled(1 + 4e-6, "result_output"))
    assert repository.gate("--force-regen").code == 1
    repository.config(CONFIG + "[limits]\nfloors = 10\n")
    ran = repository.gate("--force-regen")
    assert ran.code == 0
    assert repository.case()["verdict"] == "diverges"
    assert "Note: 1 site is diverging, and within the limits." in ran.out


@pytest.mark.slow
def test_what_lies_beyond_the_limits_is_named_in_place_of_what_lies_within(repository: Repository) -> None:
    repository.holds("right", lambda s, x: scaled(1 + 4e-6, "ffn_norm-0")(s, scaled(1.1, "result_output")(s, x)))
    repository.config(CONFIG + "[limits]\nfloors = 10\n")
    assert repository.gate("--force-regen").code == 1
    (failure,) = repository.case()["failures"]
    assert failure.startswith(
        "result_output is the first beyond the limits: linear, local error 0.1 against a limit of 1"
    )


def test_an_allowed_hypothesis_passes_and_another_does_not(repository: Repository) -> None:
    repository.holds("wrong")
    repository.config(CONFIG + '[limits]\nallowed = ["rope-base"]\n')
    assert repository.gate("--force-regen").code == 0
    repository.config(CONFIG + '[limits]\nallowed = ["norm-eps"]\n')
    assert repository.gate("--force-regen").code == 1


def test_too_little_coverage_fails(repository: Repository) -> None:
    repository.holds("right", without("kq-0", "kq-1"))
    repository.config(CONFIG + "[limits]\ncoverage = 0.97\n")
    assert repository.gate("--force-regen").code == 0
    repository.config(CONFIG + "[limits]\ncoverage = 0.98\n")
    assert repository.gate("--force-regen").code == 1
    said = "Only 80 of 82 sites were judged (0.976), and the limits ask for 0.98: dump more of them."
    assert repository.case()["failures"] == [said]


def test_too_large_a_kl_divergence_fails(repository: Repository) -> None:
    repository.holds("wrong")
    for limit, code in ((100, 0), (1e-9, 1)):
        repository.config(CONFIG + f'[limits]\nallowed = ["rope-base"]\nkl = {limit}\n')
        assert repository.gate("--force-regen").code == code
    (failure,) = repository.case()["failures"]
    assert failure.startswith("KL divergence ")
    assert failure.endswith(" and the limits allow 1e-09.")


def test_a_kl_divergence_that_nothing_shows_fails(repository: Repository) -> None:
    repository.holds("right", without("result_output", "result_output@1"))
    repository.config(CONFIG + "[limits]\nkl = 1\n")
    assert repository.gate("--force-regen").code == 1
    assert "no logits could be compared: dump result_output" in repository.case()["failures"][0]
