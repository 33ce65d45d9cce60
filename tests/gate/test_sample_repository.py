"""A repository with an engine, tests and modules of its own, and what plugin and gate say of it, clean and broken."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from builders.models import TINY, synthetic

TESTS = Path(__file__).parents[1]
PYTHON = Path(sys.executable).parent
BASE = "** (-np.arange(0, size, 2) / size)"


@dataclass
class Sample:
    """A copy of tests/sample_engine that can be broken."""

    folder: Path

    def change(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        paths = f"{PYTHON}{os.pathsep}{os.environ['PATH']}"  # python3 of firstdiff.toml
        kept = {k: v for k, v in os.environ.items() if k not in ("GITHUB_ACTIONS", "PYTEST_ADDOPTS")}
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=self.folder, capture_output=True, text=True, check=False,
            env=kept | {"PATH": paths, "PYTHONDONTWRITEBYTECODE": "1"} | environment,
        )  # fmt: skip

    def pytest(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("pytest", "-p", "no:cacheprovider", *arguments)

    def gate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("firstdiff", "gate", *arguments)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    folder = tmp_path / "sample"
    shutil.copytree(TESTS / "sample_engine", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TESTS.parent / "dumps" / "writers" / "firstdiff_writer.py", folder)
    synthetic(folder / "tiny.gguf", TINY)
    return Sample(folder)


@pytest.fixture
def based(sample: Sample) -> Sample:
    done = sample.gate("--force-regen")
    assert done.returncode == 0, done.stdout + done.stderr
    return sample


def broken(sample: Sample) -> Sample:
    """Turn dimensions by a wrong exponent, as an engine does that takes the pairs' number for the dimensions'."""
    sample.change("engine.py", BASE, "** (-np.arange(size // 2) / size)")
    return sample


# pytest


@pytest.mark.llama
def test_the_first_run_writes_baselines_and_fails_and_the_second_passes(sample: Sample) -> None:
    first = sample.pytest()
    assert first.returncode == 1, first.stdout
    assert first.stdout.count("There was no baseline: ") >= 2
    assert "2 failed, 3 passed" in first.stdout
    second = sample.pytest()
    assert second.returncode == 0, second.stdout
    assert "5 passed" in second.stdout


@pytest.mark.llama
def test_an_engine_that_breaks_fails_with_the_sentence_the_explanation_and_the_report(based: Sample) -> None:
    done = broken(based).pytest("--junitxml", "junit.xml")
    assert done.returncode == 1
    assert "3 failed, 2 passed" in done.stdout
    section = done.stdout.partition("_ firstdiff: tiny/bytes/sample _")[2].partition("\n____")[0]
    lines = section.splitlines()[1:]
    assert lines[0].startswith("Qcur_rope-0 is the first to go wrong: rope, local error ")
    assert lines[1].startswith("12 sites are worse than in the baseline: Qcur_rope-0 (agrees, now diverges)")
    assert lines[2].startswith("Qcur_rope and Kcur_rope at every layer")
    report = Path(lines[-1].removeprefix("Report: "))
    assert report.name == "report.html"
    assert report.is_relative_to(based.folder / "firstdiff-runs")
    assert report.is_file()
    assert "Traceback" not in section
    assert "test_every_tensor_is_right" in done.stdout

    cases = {case.get("name"): case for case in ET.parse(based.folder / "junit.xml").getroot().iter("testcase")}
    for name in ("tiny/bytes/sample", "test_every_tensor_is_right"):
        properties = {p.get("name"): str(p.get("value")) for p in cases[name].iter("property")}
        assert properties["firstdiff.first"] == "Qcur_rope-0"
        assert Path(properties["firstdiff.report"]).is_file()
        assert properties["firstdiff.explanation"]
        failure = cases[name].find("failure")
        assert failure is not None
        assert "Qcur_rope-0 is the first to go wrong" in str(failure.get("message"))


@pytest.mark.llama
def test_a_tensor_that_is_no_longer_dumped_fails_until_the_baseline_is_made_again(based: Sample) -> None:
    based.change("engine.py", 'put("attn_out", merged @ weight("attn_output").T)', 'merged @ weight("attn_output").T')
    done = based.pytest("firstdiff.toml")
    assert done.returncode == 1
    assert "6 sites of the baseline are no longer judged: attn_out-0 (not recorded), attn_out-1" in done.stdout
    assert based.pytest("firstdiff.toml", "--firstdiff-regen").returncode == 0
    assert based.pytest("firstdiff.toml").returncode == 0


@pytest.mark.llama
def test_an_engine_that_raises_says_its_last_words(based: Sample) -> None:
    based.change("engine.py", "    return e / e.sum(-1, keepdims=True)\n", "    raise ZeroDivisionError('no sum')\n")
    done = based.pytest("firstdiff.toml")
    assert done.returncode == 1
    assert "ZeroDivisionError: no sum" in done.stdout.partition("short test summary")[0]
    assert "INTERNALERROR" not in done.stdout


@pytest.mark.llama
def test_one_case_can_be_selected_and_a_folder_for_the_run_be_named(based: Sample) -> None:
    assert "1 passed, 1 deselected" in based.pytest("firstdiff.toml", "-k", "bytes", "--firstdiff-out", "here").stdout
    assert (based.folder / "here" / "firstdiff" / "tiny/bytes/sample" / "verdict.json").is_file()
    assert "1 passed" in based.pytest("firstdiff.toml::tiny/text/sample").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[modles]\n", "unknown key 'modles' (did you mean 'models'?)"),
        ("[models\n", "is no TOML"),
    ],
)
def test_a_mistake_in_firstdiff_toml_is_an_error_of_collection(sample: Sample, text: str, said: str) -> None:
    (sample.folder / "firstdiff.toml").write_text(text)
    done = sample.pytest("firstdiff.toml")
    assert done.returncode == 2
    assert said in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_a_trace_that_cannot_be_read_fails_the_test_that_judges_it(sample: Sample) -> None:
    (sample.folder / "test_lost.py").write_text(
        "def test_lost(path, firstdiff):\n    firstdiff.check(path, 'nowhere')\n"
    )
    done = sample.pytest("test_lost.py")
    assert done.returncode == 1
    section = done.stdout.partition("_ test_lost _")[2].partition("====")[0].splitlines()
    assert len(section) == 2, done.stdout
    assert section[1].startswith("firstdiff: nowhere: ")


@pytest.mark.llama
def test_a_folder_that_cannot_be_made_fails_in_one_line(based: Sample) -> None:
    (based.folder / "file").write_text("")
    done = based.pytest("firstdiff.toml", "-k", "bytes", "--firstdiff-out", "file")
    assert done.returncode == 1
    section = done.stdout.partition("_ firstdiff: tiny/bytes/sample _")[2].partition("====")[0].splitlines()
    assert len(section) == 2, done.stdout
    assert "cannot be made" in section[1]


# GitHub's action


def script_of_action() -> str:
    """The step of action.yml that runs the gate."""
    text = (TESTS.parent / "action.yml").read_text()
    (block,) = re.findall(r"      run: \|\n((?:        .*\n)+)", text)
    return textwrap.dedent(block)


@pytest.mark.llama
@pytest.mark.parametrize("code", [0, 1])
def test_the_action_shows_the_summary_and_passes_the_exit_code_on(based: Sample, tmp_path: Path, code: int) -> None:
    if code:
        broken(based)
    command = tmp_path / "firstdiff"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m firstdiff "$@"\n')
    command.chmod(0o755)
    summary = tmp_path / "summary.md"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script_of_action()],
        cwd=based.folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PATH": f"{tmp_path}:{PYTHON}:{os.environ['PATH']}", "GITHUB_ACTIONS": "true"}
        | {"GITHUB_STEP_SUMMARY": str(summary), "CONFIG": "firstdiff.toml", "OUT": "out"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert summary.read_text() == (based.folder / "out" / "summary.md").read_text()
    assert done.stderr.count("::error ") == 2 * code


# A repository that does not ask


def test_a_repository_that_does_not_ask_is_left_alone(tmp_path: Path) -> None:
    """A firstdiff.toml is there for the gate, and nothing of ours but the plugin's one module is imported."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "firstdiff.toml").write_text("this is no TOML")
    (tmp_path / "test_own.py").write_text(
        "import sys\n\ndef test_own():\n"
        "    ours = sorted(m for m in sys.modules if m.split('.')[0] == 'firstdiff')\n"
        "    assert ours == ['firstdiff', 'firstdiff.pytest_plugin']\n"
        "    assert not {'numpy', 'numba', 'rich', 'safetensors', 'llama_cpp'} & set(sys.modules)\n"
    )
    done = Sample(tmp_path).pytest("-p", "no:hypothesispytest")
    assert "1 passed" in done.stdout, done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["firstdiff.toml", "pytest.ini", "test_own.py"]


# The gate, without pytest


@pytest.mark.llama
def test_the_gate_passes_when_clean(based: Sample) -> None:
    done = based.gate("--out", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("All 2 cases pass.\n")
    assert not list(based.folder.rglob("report.html"))
    assert "## firstdiff: all 2 cases pass" in (based.folder / "out" / "summary.md").read_text()


@pytest.mark.llama
def test_the_gate_fails_with_the_same_sentence_in_every_report(based: Sample) -> None:
    done = broken(based).run("firstdiff", "gate", "--out", "out", GITHUB_ACTIONS="true")
    assert done.returncode == 1
    sentence = "Qcur_rope-0 is the first to go wrong: rope, local error "
    out = based.folder / "out"
    failures = [str(f.get("message")) for f in ET.parse(out / "junit.xml").getroot().iter("failure")]
    assert len(failures) == 2
    assert all(f.startswith(sentence) for f in failures)
    summary = (out / "summary.md").read_text()
    assert "## firstdiff: 2 of 2 cases do not pass" in summary
    assert summary.count(sentence.replace("_", "&#95;")) == 2
    annotations = [line for line in done.stderr.splitlines() if line.startswith("::error ")]
    assert [line.partition("::error title=")[2].partition("::")[0] for line in annotations] == [
        "firstdiff%3A tiny/bytes/sample", "firstdiff%3A tiny/text/sample",
    ]  # fmt: skip
    assert all(sentence in line for line in annotations)
    assert json.loads((out / "gate.json").read_text())["passes"] is False
