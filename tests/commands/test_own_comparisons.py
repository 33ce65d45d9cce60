"""Somebody's own engines compared: side by side, and by positions, tokens, weights and rope with the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.command_line import Command, strict
from builders.engines import compile_engine, run_engine
from builders.own_engine import IDS, PROMPT, QUICK, by_engine, dumped, first, narrow, unwrapped
from builders.traces import rewrite_trace
from firstdiff.engines.llamacpp import LlamaCpp


@pytest.fixture(scope="module")
def model(own_model: Path) -> Path:
    return own_model


def with_manifest(trace: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(trace, out)
    said = json.loads((out / "trace.json").read_text())
    change(said)
    (out / "trace.json").write_text(json.dumps(said))
    return out


def restart(said: dict[str, Any]) -> None:
    for position, step in enumerate(said["steps"][1:]):
        step["positions"] = [position]


# Several candidates


def test_two_candidates_part_where_one_of_them_is_wrong(
    firstdiff: Command, model: Path, clean: Path, wrong: Path
) -> None:
    ran = firstdiff("run", model, "--candidate", clean, "--candidate", wrong, "--out", "run")
    assert ran.code == 1
    assert unwrapped(ran.out).startswith(f"They part at Qcur_rope-1: {wrong} wrong, {clean} right.")
    assert [line.split()[0] for line in ran.out.splitlines() if line.startswith("candidate ")] == ["candidate"]
    assert "Qcur_rope-1 is the first to go wrong" in ran.out
    assert "Every one of" not in ran.out  # the table is enough for what agrees
    narrow(ran)
    record = strict(Path("run/verdict.json").read_text())
    assert record["parting"] == {"site": "Qcur_rope-1", "wrong": [str(wrong)], "right": [str(clean)]}
    assert {name: one["verdict"] for name, one in record["candidates"].items()} == {
        str(clean): "agrees",
        str(wrong): "diverges",
    }
    again = firstdiff("run", model, "--candidate", clean, "--candidate", wrong, "--json")
    assert again.code == 1
    assert strict(again.out) == record


def test_two_candidates_that_are_fine_agree(firstdiff: Command, bench: Path, model: Path, clean: Path) -> None:
    turned = dumped(bench, model, None, None, "--order feature-token")
    ran = firstdiff("run", model, "--candidate", clean, "--candidate", turned)
    assert ran.code == 0
    assert ran.out.startswith("Both candidates agree with the reference.\n")
    assert "They part" not in ran.out
    record = strict(firstdiff("run", model, "--candidate", clean, "--candidate", turned, "--json").out)
    assert record["parting"] is None


def test_three_candidates_stand_in_one_table(
    firstdiff: Command, bench: Path, model: Path, clean: Path, wrong: Path
) -> None:
    for path, name in ((clean, "clean"), (wrong, "wrong"), (dumped(bench, model, "scale-missing"), "unscaled")):
        Path(name).symlink_to(path)
    ran = firstdiff(
        "run", model, "--candidate", "clean", "--candidate", "wrong", "--candidate", "unscaled", "--out", "run"
    )
    assert ran.code == 1
    assert unwrapped(ran.out).startswith("They part at kq_soft_max-0: unscaled wrong, clean and wrong right.")
    rows = [line.split()[:3] for line in ran.out.splitlines() if line.endswith("123 of 123")]
    assert rows == [
        ["clean", "agrees", "-"],
        ["wrong", "diverges", "Qcur_rope-1"],
        ["unscaled", "diverges", "kq_soft_max-0"],
    ]
    narrow(ran)
    assert list(strict(Path("run/verdict.json").read_text())["candidates"]) == ["clean", "wrong", "unscaled"]


def test_a_broken_contract_is_what_goes_wrong_first_in_the_table(
    firstdiff: Command, model: Path, clean: Path, tmp_path: Path
) -> None:
    Path("fine").symlink_to(clean)
    with_manifest(clean, tmp_path / "restarted", restart)
    ran = firstdiff("run", model, "--candidate", "fine", "--candidate", "restarted")
    assert ran.code == 1
    rows = [line.split()[:3] for line in ran.out.splitlines() if line.endswith("123 of 123")]
    assert rows == [["fine", "agrees", "-"], ["restarted", "diverges", "positions"]]


def test_a_candidate_given_twice_is_there_twice(firstdiff: Command, model: Path, clean: Path) -> None:
    Path("dump").symlink_to(clean)
    ran = firstdiff("run", model, "--candidate", "dump", "--candidate", "dump", "--json")
    assert list(strict(ran.out)["candidates"]) == ["dump", "dump (2)"]


def test_candidates_of_other_tokens_are_said_to_be(firstdiff: Command, bench: Path, model: Path, clean: Path) -> None:
    other = bench / "other-tokens"
    run_engine(compile_engine(bench, flags=QUICK), model, [*PROMPT[:-1], 9], other, decode=3)
    ran = firstdiff("run", model, "--candidate", clean, "--candidate", other)
    assert ran.code == 0
    assert "They did not run the same tokens: their tokens differ from step 0 on." in unwrapped(ran.out)


def test_candidates_part_in_a_step_that_the_first_one_does_not_have(
    firstdiff: Command, bench: Path, model: Path, clean: Path
) -> None:
    short = rewrite_trace(clean, bench / "short", steps=1)
    stale = dumped(bench, model, "cache-stale")
    three = ("--candidate", short, "--candidate", stale, "--candidate", clean)
    record = strict(firstdiff("run", model, *three, "--json").out)
    assert record["parting"] == {"site": "k_cache-0@1", "wrong": [str(stale)], "right": [str(clean)]}


def test_an_engine_is_judged_beside_a_candidate(firstdiff: Command, bench: Path, model: Path, clean: Path) -> None:
    engine = by_engine(compile_engine(bench, "rope-pairing", 1, flags=QUICK))
    ran = firstdiff("run", model, "--tokens", IDS, "--candidate", clean, "--engine", engine)
    assert ran.code == 1
    assert unwrapped(ran.out).startswith(f"They part at Qcur_rope-1: engine wrong, {clean} right.")


def test_a_hostile_name_is_shown_escaped(firstdiff: Command, model: Path, clean: Path, wrong: Path) -> None:
    for path, name in ((clean, "a\x1b[31m"), (wrong, "[bold]b")):
        shutil.copytree(path, name)
        said = json.loads(Path(name, "trace.json").read_text())
        said["engine"]["name"] = name
        Path(name, "trace.json").write_text(json.dumps(said))
    ran = firstdiff("run", model, "--candidate", "a\x1b[31m", "--candidate", "[bold]b")
    assert "\x1b" not in ran.out
    assert "They part at Qcur_rope-1: [bold]b wrong, a\\x1b[31m right." in unwrapped(ran.out)


# Before any tensor


@pytest.mark.compiler
@pytest.mark.parametrize("bug", [None, "rope-position"])
def test_positions_that_restart_are_the_first_thing_said(
    firstdiff: Command, bench: Path, model: Path, tmp_path: Path, bug: str | None
) -> None:
    dump = with_manifest(dumped(bench, model, bug), tmp_path / "dump", restart)
    ran = firstdiff("run", model, "--candidate", dump)
    assert ran.code == 1
    said = "positions: step 1 has position 0 where 12 tokens are cached: restarted at 0; so is 1 later step."
    assert unwrapped(ran.out).startswith(f"Before any tensor, {said}")
    assert "positions agrees" not in ran.out
    narrow(ran)


TEXT = "tell me more"


@pytest.fixture(scope="module")
def tokenised(llama: None, model: Path) -> list[int]:
    with LlamaCpp(model, vocabulary_only=True) as vocabulary:
        return vocabulary.tokenize(TEXT)


@pytest.mark.parametrize(
    ("cause", "change"),
    [
        (None, lambda ids: ids),
        ("token-double-bos", lambda ids: [1, *ids]),
        ("token-appended-eos", lambda ids: [*ids, 2]),
        ("token-missing-bos", lambda ids: ids[1:]),
    ],
)
def test_tokens_that_a_text_does_not_have_are_named_first(
    firstdiff: Command,
    bench: Path,
    model: Path,
    tokenised: list[int],
    cause: str | None,
    change: Callable[[list[int]], list[int]],
) -> None:
    run_engine(compile_engine(bench, flags=QUICK), model, change(tokenised), Path("dump"), decode=1)
    ran = firstdiff("run", model, "--prompt", TEXT, "--candidate", "dump", "--out", "run")
    verdict = strict(Path("run/verdict.json").read_text())
    assert first(verdict) is None  # each operation is right
    assert ran.code == (0 if cause is None else 1)
    if cause is None:
        assert verdict["preflight"]["tokens"] == "agrees"
    else:
        assert unwrapped(ran.out).startswith("Before any tensor, tokens: token ")
        assert f"({cause})" in ran.out
    narrow(ran)


def test_tokens_lists_ids_or_compares_them(firstdiff: Command, model: Path, tokenised: list[int]) -> None:
    ran = firstdiff("tokens", model, "--prompt", TEXT)
    assert ran.code == 0
    assert [int(line.split()[1]) for line in ran.out.splitlines()] == tokenised
    assert strict(firstdiff("tokens", model, "--prompt", TEXT, "--json").out)["ids"] == tokenised
    doubled = ",".join(map(str, [1, *tokenised]))
    ran = firstdiff("tokens", model, "--prompt", TEXT, "--ids", doubled)
    assert ran.code == 1
    assert "token-double-bos" in ran.out
    record = strict(firstdiff("tokens", model, "--prompt", TEXT, "--ids", doubled, "--json").out)
    assert [cause["id"] for cause in record["causes"]] == ["token-double-bos"]


def test_weights_lists_statistics_or_compares(firstdiff: Command, model: Path, tmp_path: Path) -> None:
    ran = firstdiff("weights", model, "attn_q")
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == [
        f"blk.{layer}.attn_q.{part}" for layer in (0, 1) for part in ("weight", "bias")
    ]
    record = strict(firstdiff("weights", model, "--json").out)
    assert len(record["tensors"]) > 20
    save_file({"output_norm.weight": np.full(64, 3, np.float32)}, tmp_path / "mine.safetensors")
    ran = firstdiff("weights", model, "--against", tmp_path / "mine.safetensors")
    assert ran.code == 1
    assert "output_norm.weight" in ran.out
    strict(firstdiff("weights", model, "--against", tmp_path / "mine.safetensors", "--json").out)


def test_rope_prints_the_table_or_a_traces_angles(firstdiff: Command, model: Path, clean: Path, wrong: Path) -> None:
    ran = firstdiff("rope", model, "--positions", "0,5", "--pairs", "0,3")
    assert ran.code == 0
    assert [line.split()[:2] for line in ran.out.splitlines()[-4:]] == [["0", "0"], ["0", "3"], ["5", "0"], ["5", "3"]]
    strict(firstdiff("rope", model, "--positions", "0,5", "--json").out)
    assert firstdiff("rope", model, "--trace", clean, "--layer", 1).code == 0
    ran = firstdiff("rope", model, "--trace", wrong, "--layer", 1)
    assert ran.code == 1
    assert "Pairing half fits, where the model pairs interleaved," in ran.out
    record = strict(firstdiff("rope", model, "--trace", wrong, "--layer", 1, "--json").out)
    assert record["Qcur_rope"]["id"] == record["Kcur_rope"]["id"] == "rope-pairing"
