"""What the gate cannot judge or write: refused or said, and no fault of one case hides another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders.command_line import assert_refused
from builders.engines import recorded_by_reference
from builders.gate import CONFIG, PROMPT, Repository, damaged
from builders.models import TINY, synthetic
from firstdiff.dumps import open_trace
from firstdiff.model.engine import open_model
from firstdiff.runs.prompt import Input, tokens_of
from firstdiff.verdict.provenance import own_version


def with_sites(sites: object) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | {"sites": sites})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.replace('"version": 1', '"version": 2'),
            ("of version 2", "made by firstdiff", "version 1 is read"),
        ),
        (lambda t: t.replace("firstdiff-baseline", "firstdiff-verdict"), ("is no baseline", "'firstdiff-verdict'")),
        (lambda t: t[: len(t) // 2], ("is not valid JSON",)),
        (lambda _: "", ("is not valid JSON",)),
        (lambda _: "[]", ("must be a JSON object",)),
        (lambda t: t.replace('"columns"', '"rows"'), ("is damaged", "'columns'")),
        (lambda t: t.replace('"floor"', '"flor"'), ("is damaged", "columns")),
        (lambda t: t.replace('"sha256"', '"sha1"'), ("is damaged", "'sha256'")),
        (with_sites([]), ("is damaged",)),
        (with_sites({"embd": ["agrees", 0.0]}), ("is damaged",)),
        (with_sites({"embd": ["fine", 0, 1, 1, "x"]}), ("is damaged", "'fine'")),
        (with_sites({"embd": ["agrees", "0", 1, 1, "x"]}), ("is damaged", "no number")),
        (with_sites({"embd": ["agrees", 0, 1, 1, 7]}), ("is damaged", "hash")),
    ],
)
def test_a_baseline_that_cannot_be_read_is_refused(
    based: Repository, change: Callable[[str], str], words: tuple[str, ...]
) -> None:
    ran = damaged(based, change)
    assert ran.code == 3
    (failure,) = based.case()["failures"]
    assert failure.startswith(f"{based.baseline}: ")
    assert [word for word in words if word not in failure] == [], failure
    assert based.gate("--force-regen").code == 0


def test_a_baseline_of_another_model_is_refused_before_anything_runs(based: Repository) -> None:
    Path("tiny.gguf").unlink()
    shifted = {"llama.rope.freq_base": 9999.0}
    synthetic(Path("tiny.gguf"), TINY, metadata=shifted)
    assert based.gate().code == 3
    (failure,) = based.case()["failures"]
    assert "is the baseline of another model (tiny.gguf, sha256 " in failure
    assert "--force-regen" in failure
    assert not (based.out / "tiny").exists()


def test_a_baseline_of_another_prompt_is_refused(based: Repository) -> None:
    recorded_by_reference(based.kept / "tiny.gguf", Path("mine"), tokens=(1, 70, 99, 72))
    assert based.gate().code == 3
    (failure,) = based.case()["failures"]
    assert "is the baseline of another prompt (5 tokens, [71, 72, 73] at place 2) than this run's (4 tokens" in failure


def test_a_baseline_of_another_firstdiff_is_noted(based: Repository) -> None:
    ran = damaged(based, lambda t: t.replace(f'"firstdiff": "{own_version()}"', '"firstdiff": "0.0.1"'))
    assert ran.code == 0
    assert "Note: the baseline was made by firstdiff 0.0.1, and this is" in " ".join(ran.out.split())


def test_a_baseline_that_cannot_be_written_is_said(repository: Repository) -> None:
    Path("firstdiff-baseline").write_text("a file")
    assert repository.gate().code == 3
    assert "firstdiff-baseline/tiny/mine.json: the baseline cannot be written (" in repository.case()["failures"][0]


def test_a_folder_for_the_run_that_cannot_be_made_is_said(repository: Repository) -> None:
    Path("out").write_text("a file")
    assert_refused(repository._command("gate", "--out", "out/x"), 3, "out/x", "cannot be")


def test_a_run_in_which_nothing_could_be_compared_is_no_pass_and_no_baseline(repository: Repository) -> None:
    repository.holds("right", lambda s, _: np.full((7, 7), 1, np.float32) if s == "embd" else None)
    ran = repository.gate()
    assert ran.code == 4
    assert "Nothing could be compared: this is no pass." in ran.out
    assert not repository.baseline.exists()


def test_a_case_that_cannot_be_run_fails_alone(repository: Repository) -> None:
    Path("junk.gguf").write_text("no model")
    repository.config(
        '[models]\ntiny = "tiny.gguf"\nnone = "none.gguf"\njunk = "junk.gguf"\n[traces]\n'
        'mine = {path = "mine", model = "tiny"}\nlost = {path = "lost", model = "tiny"}\n'
        'none = {path = "mine", model = "none"}\njunk = {path = "mine", model = "junk"}\n'
    )
    ran = repository.gate("--force-regen")
    assert ran.code == 3
    assert [repository.case(f"{name}")["code"] for name in ("tiny/mine", "tiny/lost", "none/none", "junk/junk")] == [
        0, 3, 3, 3,
    ]  # fmt: skip
    assert "--- tiny/lost ---" in ran.out
    assert "3 of 4 cases do not pass." in ran.out


def test_only_the_cases_asked_for_are_run(repository: Repository) -> None:
    repository.config(CONFIG + 'other = "other"\n')
    assert repository.gate("--case", "tiny/mine", "--force-regen").code == 0
    assert_refused(
        repository.gate("--case", "tiny/mien"), 2, "--case 'tiny/mien': no such case", "tiny/mine, tiny/other"
    )


@pytest.mark.llama
@pytest.mark.parametrize("prompt", ["[1, 70, 71, 72, 73]", "'it is'"])
def test_a_dump_without_tokens_takes_those_of_its_prompt(repository: Repository, prompt: str) -> None:
    tokens = PROMPT if prompt.startswith("[") else tokens_of(open_model(Path("tiny.gguf")), Input(prompt="it is"))
    right = open_trace(recorded_by_reference(Path("tiny.gguf").resolve(), Path("right"), tokens=tuple(tokens)))
    np.savez("mine.npz", **{s.key: right[s] for s in right.sites() if s.step == 0})
    repository.config(
        f"[models]\ntiny = 'tiny.gguf'\n[prompts]\np = {prompt}\n[traces]\nmine = {{path = 'mine.npz', prompt = 'p'}}\n"
    )
    assert repository.gate("--force-regen").code == 0, repository.case()["failures"]
    assert repository.case()["coverage"]["recorded"] == 41
    assert repository.gate().code == 0
    assert repository.case()["changes"]["same"] == 41
