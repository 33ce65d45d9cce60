"""What the gate runs, prints and keeps: engines beside firstdiff.toml, and every format that tells the same."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from builders.command_line import assert_refused
from builders.engines import compile_engine
from builders.gate import PROMPT, Repository

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
@pytest.mark.parametrize("verb", ["run", "diff", "report"])
def test_other_commands_print_these_formats_too(repository: Repository, verb: str) -> None:
    repository.holds("wrong")
    repository._command("run", "tiny.gguf", "--candidate", "mine", "--out", "ran")
    given = {
        "run": ("run", "tiny.gguf", "--candidate", "mine"),
        "diff": ("diff", "mine", repository.kept / "right", "--model", "tiny.gguf"),
        "report": ("report", "ran/verdict.json"),
    }[verb]
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
