"""The gate: limits, baselines, what they make of a change, and that no fault of one case hides another."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from builders.command_line import Command, Ran, assert_refused
from builders.engines import compile_engine, recorded_by_reference, run_engine
from builders.judging import judge
from builders.models import TINY, Array, synthetic
from builders.traces import rewrite_trace
from firstdiff.dumps import open_trace
from firstdiff.gate.baseline import GROWN
from firstdiff.model.engine import open_model
from firstdiff.runs.prompt import Input, tokens_of
from firstdiff.verdict.provenance import own_version

PROMPT = (1, 70, 71, 72, 73)
SITES = 2 * (2 * 19 + 3)
CONFIG = '[models]\ntiny = "tiny.gguf"\n[traces]\nmine = "mine"\n'
Change = Callable[[str, Array], Array | None]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a right trace of it, and one with a wrong rope base at layer 1."""
    folder = tmp_path_factory.mktemp("kept")
    model = synthetic(folder / "tiny.gguf", TINY)
    recorded_by_reference(model, folder / "right")
    recorded_by_reference(model, folder / "wrong", ("rope-base", 1))
    return folder


class Repository:
    """A folder with a model, a firstdiff.toml, and the trace ``mine``."""

    baseline = Path("firstdiff-baseline/tiny/mine.json")

    def __init__(self, kept: Path, command: Command) -> None:
        self.kept, self._command, self._runs = kept, command, 0
        Path("tiny.gguf").symlink_to(kept / "tiny.gguf")
        self.holds("right")
        self.config(CONFIG)

    def config(self, text: str) -> None:
        Path("firstdiff.toml").write_text(text)

    def holds(self, trace: str, change: Change = lambda _, x: x, steps: int | None = None) -> None:
        """Let ``mine`` be a trace with a change."""
        rewrite_trace(self.kept / trace, Path("mine"), change, steps=steps)

    def gate(self, *options: object) -> Ran:
        self._runs += 1
        self.out = Path(f"out-{self._runs}")
        return self._command("gate", "--out", self.out, *options)

    def case(self, name: str = "tiny/mine") -> dict[str, Any]:
        """What the last run says of a case."""
        found: dict[str, Any] = json.loads((self.out / "gate.json").read_text())["cases"][name]
        return found


@pytest.fixture
def repository(
    kept: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Repository:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return Repository(kept, Command(capfd))


@pytest.fixture
def based(repository: Repository) -> Repository:
    """One with a baseline."""
    assert repository.gate("--force-regen").code == 0
    return repository


def scaled(by: float, site: str) -> Change:
    return lambda name, x: (x * np.float32(by)).astype(x.dtype) if name == site else x


def without(*sites: str) -> Change:
    return lambda name, x: None if name in sites else x


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


# What cannot be judged


def damaged(repository: Repository, change: Callable[[str], str]) -> Ran:
    repository.baseline.write_text(change(repository.baseline.read_text()))
    return repository.gate()


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


# Engines


def engine(code: str) -> str:
    return json.dumps(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {{dump}}")


@pytest.mark.compiler
def test_an_engine_is_run_beside_its_firstdiff_toml(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = compile_engine(tmp_path, None, None, ("-O0",))
    Path("elsewhere").mkdir()
    command = f"./{program.name} --model {{model}} --tokens {{tokens}} --decode {{decode}} --dump {{dump}}"
    repository.config(
        f"decode = [0, 1]\n[models]\ntiny = 'tiny.gguf'\n[prompts]\np = [1, 70, 71]\n[engines]\nc = '{command}'\n"
    )
    monkeypatch.chdir("elsewhere")
    ran = repository._command("gate", "../firstdiff.toml", "--out", "out", "--force-regen", "--json")
    cases = json.loads(ran.out)["cases"]
    assert ran.code == 0, ran.out
    assert {name: case["coverage"]["recorded"] for name, case in cases.items()} == {
        "tiny/p/c/decode-0": 41, "tiny/p/c/decode-1": 82,
    }  # fmt: skip


@pytest.mark.llama
def test_llama_cpp_can_be_the_candidate(repository: Repository) -> None:
    repository.config("[models]\ntiny = 'tiny.gguf'\n[prompts]\nt = 'it'\n[engines]\nllama = 'llama.cpp:cpu'\n")
    assert repository.gate("--force-regen").code == 0
    assert repository.case("tiny/t/llama")["coverage"]["recorded"] == 3 * 41


def test_an_engine_that_leaves_nothing_is_a_failed_capture(repository: Repository) -> None:
    repository.config(f"[models]\ntiny = 'tiny.gguf'\n[prompts]\np = [1]\n[engines]\nbad = {engine('print(77)')}\n")
    assert repository.gate().code == 3
    assert "the engine wrote no dump to" in repository.case("tiny/p/bad")["failures"][0]


def test_of_an_engine_that_crashes_no_baseline_is_made(repository: Repository) -> None:
    code = f"import os, shutil, sys; shutil.copytree({str(Path('mine').absolute())!r}, sys.argv[1]); os.abort()"
    repository.config(f"[models]\ntiny = 'tiny.gguf'\n[prompts]\np = {list(PROMPT)}\n[engines]\nbad = {engine(code)}\n")
    assert repository.gate().code == 1
    case = repository.case("tiny/p/bad")
    assert case["failures"][0].startswith("The engine crashed (SIGABRT)")
    assert case["notes"] == ["no baseline is written of a run whose input contract does not hold"]
    assert not Path("firstdiff-baseline").exists()


# What is printed and kept


@pytest.mark.slow
def test_every_format_tells_the_same(based: Repository) -> None:
    based.holds("wrong")
    headline = "is the first to go wrong: rope, local error"
    for kind, file in (("json", "gate.json"), ("markdown", "summary.md"), ("junit", "junit.xml")):
        ran = based.gate("--format", kind)
        assert (ran.code, ran.err) == (1, "")
        assert ran.out == (based.out / file).read_text()
        assert headline in ran.out
    suite = ET.fromstring(ran.out)[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert suite[0].get("name") == "tiny/mine"


def test_on_github_annotations_are_written_to_stderr(based: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert based.gate().err == ""
    based.holds("wrong")
    ran = based.gate()
    assert ran.err.startswith("::error title=firstdiff%3A tiny/mine::Qcur_rope-1 is the first to go wrong")
    assert ran.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "diff", "report"])
def test_other_commands_print_these_formats_too(repository: Repository, command: str) -> None:
    repository.holds("wrong")
    repository._command("run", "tiny.gguf", "--candidate", "mine", "--out", "ran")
    given = {
        "run": ("run", "tiny.gguf", "--candidate", "mine"),
        "diff": ("diff", "mine", repository.kept / "right", "--model", "tiny.gguf"),
        "report": ("report", "ran/verdict.json"),
    }[command]
    markdown = repository._command(*given, "--format", "markdown")
    assert (markdown.code, markdown.err) == (1, "")
    assert markdown.out.startswith("## firstdiff: diverges\n")
    assert "rope base of 500000" in markdown.out
    junit = repository._command(*given, "--format", "junit")
    failure = ET.fromstring(junit.out)[0][0].find("failure")
    assert failure is not None
    assert str(failure.get("message")).startswith("Qcur_rope-1 is the first to go wrong")
    assert repository._command(*given, "--format", "json").out.startswith('{\n "format": "firstdiff-verdict"')
    page = repository._command(*given, "--format", "html")
    assert (page.code, page.err) == (1, "")
    assert page.out.startswith("<!doctype html>")
    assert "Qcur_rope-1 is the first to go wrong" in page.out


def test_several_candidates_are_several_cases(repository: Repository) -> None:
    given = ("run", "tiny.gguf", "--candidate", "mine", "--candidate", repository.kept / "wrong")
    suite = ET.fromstring(repository._command(*given, "--format", "junit").out)[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    refused = repository._command(*given, "--format", "html")
    assert_refused(refused, 2, "a page shows one verdict")


def test_an_unknown_format_is_wrong_usage(repository: Repository) -> None:
    assert_refused(repository.gate("--format", "pdf"), 2, "'pdf'", "markdown")
