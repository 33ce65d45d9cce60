"""The command line: its exit codes, what goes to which stream, and that what it writes can be read again."""

from __future__ import annotations

import importlib.metadata
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from builders.command_line import TOKENS, Command, strict
from builders.models import TINY, synthetic
from firstdiff.engines.identity import identity
from firstdiff.hypotheses.planting import planted
from firstdiff.model.engine import open_model
from firstdiff.runs import recording
from firstdiff.runs.prompt import Input
from firstdiff.verdict.reading import read_verdict

COMMANDS = ("demo", "run", "record", "report", "diff", "doctor")


@pytest.fixture(scope="module")
def wrong(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of an engine with a wrong rope base at layer 1."""
    out = tmp_path_factory.mktemp("trace") / "wrong"
    plants = [planted("rope-base", 1)]
    source = Input(tokens=(1, 70, 71, 72, 73))
    recording.record(model, source, out, engine="reference:f32", decode=1, threads=1, planted=plants)
    return out


def process(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "firstdiff", *map(str, arguments)],
        cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False, encoding="utf-8",
    )  # fmt: skip


# Help


def test_help_names_every_command_and_every_exit_code(firstdiff: Command) -> None:
    ran = firstdiff("--help")
    assert (ran.code, ran.err) == (0, "")
    assert all(f"\n    {command} " in ran.out for command in COMMANDS)
    assert all(f"{code} " in ran.out.partition("exit codes:")[2] for code in range(5))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(firstdiff: Command, command: str) -> None:
    ran = firstdiff(command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: firstdiff {command}")


@pytest.fixture
def gated(model: Path, wrong: Path, tmp_path: Path) -> Path:
    path = tmp_path / "firstdiff.toml"
    path.write_text(f'[models]\nm = "{model}"\n[traces]\nt = "{wrong}"\n')
    return path


PRINTED: dict[str, tuple[Sequence[str], str, Callable[[Any], bool]]] = {
    "run": (["MODEL", "--candidate", "TRACE"], "print verdict.json", lambda x: x["format"] == "firstdiff-verdict"),
    "demo": (["--model", "MODEL"], "print verdict.json", lambda x: x["format"] == "firstdiff-verdict"),
    "diff": (
        ["TRACE", "TRACE", "--model", "MODEL"],
        "print verdict.json",
        lambda x: x["format"] == "firstdiff-verdict",
    ),
    "report": (["VERDICT"], "print verdict.json", lambda x: x["format"] == "firstdiff-verdict"),
    "gate": (["TOML"], "print gate.json", lambda x: x["format"] == "firstdiff-gate"),
    "explain": (["TRACE", "--model", "MODEL"], "the explanations", lambda x: x[0]["hypothesis"] == "rope-base"),
    "hypotheses": ([], "the hypotheses", lambda x: "norm-eps" in [h["id"] for h in x]),
    "names": (["TRACE"], "every name", lambda x: {"name", "point", "layer"} < set(x[0])),
    "tokens": (["MODEL", "--prompt", "a"], "the ids with their pieces", lambda x: {"ids", "pieces"} < set(x)),
    "rope": (["MODEL"], "the table", lambda x: {"angles", "cos", "sin"} < set(x)),
    "weights": (["MODEL"], "the statistics", lambda x: "statistics" in x["tensors"][0]),
    "log": (["LOG", "--model", "MODEL", "--tokens", "1,70"], "every observation", lambda x: "observed" in x),
}
"""Arguments of each command, and what it prints with ``--json``: as the help calls it, and as it is."""

RUNS_LLAMA = ("demo", "tokens")


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=pytest.mark.llama) if c in RUNS_LLAMA else c for c in PRINTED]
)
def test_json_is_what_the_help_calls_it(
    firstdiff: Command, model: Path, wrong: Path, gated: Path, tmp_path: Path, command: str
) -> None:
    arguments, called, is_so = PRINTED[command]
    described = " ".join(firstdiff(command, "--help").out.rpartition(" --json ")[2].split())
    assert called in described
    files = {"MODEL": model, "TRACE": wrong, "TOML": gated, "LOG": tmp_path / "log", "VERDICT": tmp_path / "v.json"}
    files["LOG"].write_text("attn_norm-0: rms 1.0\n")
    if command == "report":
        files["VERDICT"].write_text(firstdiff("diff", wrong, wrong, "--model", model, "--json").out)
    ran = firstdiff(command, *(files.get(a, a) for a in arguments), "--json")
    assert is_so(strict(ran.out))


def test_version_is_that_of_the_package(firstdiff: Command) -> None:
    ran = firstdiff("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"firstdiff {importlib.metadata.version('firstdiff')}\n", "")


def test_no_command_is_wrong_usage(firstdiff: Command) -> None:
    ran = firstdiff()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("usage: firstdiff")


# run


@pytest.mark.llama
def test_run_certifies_llama_cpp_on_a_model(firstdiff: Command, model: Path, tmp_path: Path) -> None:
    ran = firstdiff("run", model, "--tokens", TOKENS, "--out", "out")
    assert (ran.code, ran.err) == (0, "")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "\x1b" not in ran.out
    assert "out" in ran.out.splitlines()[-1]
    verdict = strict((tmp_path / "out" / "verdict.json").read_text())
    assert (verdict["format"], verdict["version"]) == ("firstdiff-verdict", 1)
    assert verdict["verdict"] == "agrees"
    assert verdict["candidate"] == "llama.cpp:cpu"
    assert verdict["tokens"][0] == [1, 70, 71, 72, 73]
    assert len(verdict["tokens"]) == 3  # the prompt and two decode steps
    assert verdict["coverage"]["recorded"] == verdict["coverage"]["sites"] == 3 * (2 * 19 + 3)


@pytest.mark.llama
def test_llama_cpps_chatter_goes_to_a_log(firstdiff: Command, model: Path, tmp_path: Path) -> None:
    ran = firstdiff("run", model, "--tokens", TOKENS, "--out", "out")
    assert ran.err == ""
    assert "llama_model_loader" not in ran.out
    assert "llama_model_loader" in (tmp_path / "out" / "llama.cpp.log").read_text()


@pytest.mark.llama
def test_runs_go_to_folders_of_their_own(firstdiff: Command, model: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert firstdiff("run", model, "--tokens", TOKENS).code == 0
    runs = list((tmp_path / "firstdiff-runs").iterdir())
    assert len(runs) == 2
    assert all((folder / "verdict.json").is_file() for folder in runs)


def test_json_is_the_verdict_and_nothing_else(firstdiff: Command, model: Path, wrong: Path, tmp_path: Path) -> None:
    ran = firstdiff("run", model, "--candidate", wrong, "--out", "out", "--json")
    assert ran.err == ""
    assert ran.out == (tmp_path / "out" / "verdict.json").read_text()
    assert strict(ran.out)["verdict"] == "diverges"


def test_the_same_trace_gives_the_same_bytes(firstdiff: Command, model: Path, wrong: Path, tmp_path: Path) -> None:
    one, two = (firstdiff("run", model, "--candidate", wrong, "--out", out, "--json") for out in ("a", "b"))
    assert one.out == two.out
    assert (tmp_path / "a" / "verdict.json").read_bytes() == (tmp_path / "b" / "verdict.json").read_bytes()


def test_the_same_trace_gives_the_same_page(firstdiff: Command, model: Path, wrong: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        firstdiff("run", model, "--candidate", wrong, "--out", name, f"--html={name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_details_are_kept_where_they_are_asked_for(firstdiff: Command, model: Path, wrong: Path) -> None:
    plain, detailed = (
        strict(firstdiff("run", model, "--candidate", wrong, "--json", *more).out) for more in ((), ("--details",))
    )
    assert plain["details"] == {}
    assert "Kcur_rope-1" in detailed["details"]
    assert detailed | {"details": {}} == plain


def test_a_verdict_says_how_to_run_it_again(firstdiff: Command, model: Path, wrong: Path) -> None:
    ran = firstdiff("run", model, "--candidate", wrong, "--ou", "a", "--html=x.html", "--json", "--threads", "1")
    record = strict(ran.out)
    assert record["run"]["command"] == ["firstdiff", "run", str(model), "--candidate", str(wrong), "--threads", "1"]
    assert record["run"]["versions"]["firstdiff"] == importlib.metadata.version("firstdiff")
    assert record["model"]["sha256"] == identity(open_model(model)).sha256
    assert firstdiff(*record["run"]["command"][1:], "--json", "--details").out == ran.out


@pytest.mark.llama
def test_a_run_can_be_repeated_into_the_same_folder(firstdiff: Command, model: Path) -> None:
    one, two = (firstdiff("run", model, "--tokens", TOKENS, "--out", "out", "--json") for _ in range(2))
    assert (one.code, two.code) == (0, 0)
    assert one.out == two.out


# diff, and every command's exit code


@pytest.mark.llama
def test_diff_judges_the_first_trace_beside_the_second(firstdiff: Command, model: Path, wrong: Path) -> None:
    assert firstdiff("record", model, "--tokens", TOKENS, "--decode", "1", "--out", "right").code == 0
    same = firstdiff("diff", "right", "right", "--model", model)
    assert (same.code, same.err) == (0, "")
    there = firstdiff("diff", wrong, "right", "--model", model, "--json")
    assert there.code == 1
    assert strict(there.out)["first"]["site"] == "Qcur_rope-1"
    assert strict(there.out)["against"] == "llama.cpp:cpu"
    beside = firstdiff("diff", "right", wrong, "--model", model)
    assert beside.code == 1  # one of them is wrong
    said = " ".join(beside.out.split())
    assert said.startswith("The second trace (reference:f32) diverges from the reference at Qcur_rope-1, Kcur_rope-1, ")
    assert "sites of the first trace agrees" in said


@pytest.mark.slow
@pytest.mark.parametrize("bugs", [(), ("rope-base@1",), ("gqa-map@0", "rope-base@1")])
@pytest.mark.parametrize("command", ["run", "diff", "diff beside", "diff itself", "explain", "report"])
def test_the_exit_code_is_the_one_of_the_verdict(
    firstdiff: Command, model: Path, tmp_path: Path, command: str, bugs: tuple[str, ...]
) -> None:
    record = ("record", model, "--engine", "reference:f32", "--tokens", TOKENS, "--decode", "1", "--out")
    assert firstdiff(*record, "right").code == 0
    assert firstdiff(*record, "t", *(x for bug in bugs for x in ("--bug", bug))).code == 0
    arguments = {
        "run": ("run", model, "--candidate", "t"),
        "diff": ("diff", "t", "right", "--model", model),
        "diff beside": ("diff", "right", "t", "--model", model),
        "diff itself": ("diff", "t", "t", "--model", model),
        "explain": ("explain", "v.json"),
        "report": ("report", "v.json"),
    }
    judging = arguments["diff" if command in ("explain", "report") else command]
    judged = firstdiff(*judging, "--json")
    kept = tmp_path / "v.json"
    kept.write_text(judged.out)
    told = read_verdict(kept)
    assert judged.code == told.exit_code == (1 if bugs else 0)
    assert strict(judged.out)["verdict"] == told.verdict
    assert firstdiff(*arguments[command]).code == told.exit_code


@pytest.mark.llama
def test_diff_finds_the_model_that_the_trace_names(firstdiff: Command, tmp_path: Path) -> None:
    synthetic(tmp_path / "here.gguf", TINY)
    assert firstdiff("record", "here.gguf", "--tokens", TOKENS, "--out", "t").code == 0
    assert firstdiff("diff", "t", "t").code == 0


# Streams and terminals


def on_terminal(*arguments: object, cwd: Path, **environment: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    near, far = pty.openpty()
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "firstdiff", *map(str, arguments)],
            cwd=cwd, stdin=far, stdout=far, stderr=far,
            env={k: v for k, v in os.environ.items() if k != "NO_COLOR"}
            | {"TERM": "xterm-256color", "COLUMNS": "80"} | environment,
        )  # fmt: skip
        os.close(far)
        chunks = []
        while True:
            try:
                chunk = os.read(near, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        child.wait()
    finally:
        os.close(near)
    return b"".join(chunks).decode()


@pytest.mark.slow
def test_a_terminal_gets_colour_and_progress(model: Path, wrong: Path, tmp_path: Path) -> None:
    text = on_terminal("run", model, "--candidate", wrong, cwd=tmp_path)
    assert "judging" in text
    assert "\x1b[1" in text or "\x1b[3" in text


@pytest.mark.slow
def test_no_color_is_honoured(model: Path, wrong: Path, tmp_path: Path) -> None:
    text = on_terminal("run", model, "--candidate", wrong, cwd=tmp_path, NO_COLOR="1")
    report = text.rpartition("\x1b[2K")[2]  # after the last progress line was wiped
    assert "Qcur_rope-1" in report
    assert not any(f"\x1b[{colour}" in report for colour in ("31", "32", "33", "34", "35", "36", "38", "9"))


@pytest.mark.slow
def test_a_pipe_gets_no_escape_codes_and_no_progress(model: Path, wrong: Path, tmp_path: Path) -> None:
    ran = process("run", model, "--candidate", wrong, cwd=tmp_path, COLUMNS="80")
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "\x1b" not in ran.stdout
    assert "Qcur_rope-1" in ran.stdout


@pytest.mark.slow
def test_a_terminal_without_unicode_gets_the_report_too(model: Path, wrong: Path, tmp_path: Path) -> None:
    ran = process("run", model, "--candidate", wrong, cwd=tmp_path, PYTHONIOENCODING="ascii", COLUMNS="80")
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout.isascii()
    assert "Qcur_rope-1" in ran.stdout


def test_a_reader_that_goes_away_causes_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "firstdiff", "demo", "--list"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (3, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_told_in_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "firstdiff", "--version"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ran.stderr == b"firstdiff: No space left on device\n"
    assert ran.returncode == 3
