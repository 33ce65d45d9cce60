"""The commands `explain` and `hypotheses`: what was tried at a site, and what there is to try."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.command_line import Command, assert_refused
from builders.hypotheses import plant
from builders.judging import judge
from builders.models import in_blocks
from firstdiff.explaining.measured.statements import MEASURED
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.catalogue import TOKENS
from firstdiff.model.engine import open_model
from firstdiff.verdict import Explanation


@pytest.fixture
def run_folder(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    model = open_model(in_blocks("Q4_1", tmp_path_factory.mktemp("model"), n_layer=6, biases=True))
    trace, _ = plant(model, [1, *range(70, 110)], ("rope-base", 1), decode=0)
    verdict = judge(model, trace)
    (folder / "verdict.json").write_text(verdict.to_json())
    return folder


def test_explain_shows_what_was_tried(firstdiff: Command, run_folder: Path) -> None:
    for path in (run_folder, run_folder / "verdict.json"):
        ran = firstdiff("explain", path, "Kcur_rope-1")
        assert ran.code == 1
        assert "rope base of 500000" in ran.out
        assert "Tried at Qcur_rope-1" in ran.out
        assert "rope-scale" in ran.out


def test_explain_says_why_there_is_nothing_to_explain(firstdiff: Command, run_folder: Path) -> None:
    assert "inherits: its own operation is right" in firstdiff("explain", run_folder, "kq-1").out
    assert "agrees. Only what diverges is explained." in firstdiff("explain", run_folder, "embd").out


def test_explain_refuses_a_site_that_is_none(firstdiff: Command, run_folder: Path) -> None:
    assert_refused(firstdiff("explain", run_folder, "Kcur_rop-1"), 2, "Kcur_rop-1", "did you mean Kcur_rope-1?")


def test_explanations_are_json_too(firstdiff: Command, run_folder: Path) -> None:
    (record,) = json.loads(firstdiff("explain", run_folder, "--json").out)
    assert record["hypothesis"] == "rope-base"
    assert set(record) == set(Explanation.__dataclass_fields__)


def test_hypotheses_lists_the_table_and_shows_one_in_full(firstdiff: Command) -> None:
    listed = firstdiff("hypotheses")
    assert listed.code == 0
    assert all(id_ in listed.out for id_ in TABLE)
    assert "token-double-bos" in listed.out
    assert f"{len(TABLE)} hypotheses of tensors, and {len(TOKENS)} of tokens; {len(MEASURED)} statements" in listed.out
    one = firstdiff("hypotheses", "rope-pairing")
    assert "half-split" in one.out
    assert "kekzl/imp#503" in one.out


def test_a_hypothesis_that_is_none_is_refused(firstdiff: Command) -> None:
    assert_refused(firstdiff("hypotheses", "rope-pairings"), 2, "rope-pairings", "did you mean rope-pairing?")
