"""One dump, one verdict: whichever command, plugin or function judges it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import firstdiff as fd
from builders.command_line import Command, assert_refused
from builders.models import TINY, synthetic
from builders.traces import rewrite_trace
from firstdiff.dumps import Step, TraceError, TraceWriter, open_trace
from firstdiff.engines.identity import identity
from firstdiff.engines.reference import Recording
from firstdiff.hypotheses.planting import Planted, Planting, planted
from firstdiff.model.arithmetic import GGML_CPU
from firstdiff.model.engine import Model, open_model
from firstdiff.pytest_plugin import _OUT, FirstDiff
from firstdiff.runs.explained import verdict_of

RESTARTED = [Step((1, 70, 71, 72), (0, 1, 2, 3)), Step((73,), (0,)), Step((74,), (1,))]
RIGHT = [Step((1, 70, 71, 72), (0, 1, 2, 3)), Step((73,), (4,)), Step((74,), (5,))]
GATE = '[models]\ntiny = "{model}"\n[traces]\nmine = "{dump}"\n'

Judge = Callable[[Path, Path], tuple[int, dict[str, Any]]]
"""Judges a dump of a model: gives the exit code, and what is written."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = request.config.stash.get(_OUT, None)
    request.config.stash[_OUT] = tmp_path / "plugin"
    yield
    del request.config.stash[_OUT]
    if before is not None:
        request.config.stash[_OUT] = before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(synthetic(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY))


def dumped(model: Model, out: Path, steps: Sequence[Step], *bugs: Planted) -> Path:
    """What an engine dumps that computes as llama.cpp does, at any positions, with bugs."""
    probe: Recording = Planting(GGML_CPU, model, bugs)
    engine = {"name": "mine", "arithmetic": "ggml-cpu"}
    with TraceWriter(out, engine=engine, model=identity(model).stated) as writer:
        for index, _ in enumerate(model.forward(steps, probe)):
            writer.step(steps[index], probe.finish())
    return out


def edited(dump: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    manifest = dump / "trace.json"
    told = json.loads(manifest.read_text())
    edit(told)
    manifest.write_text(json.dumps(told))
    return dump


def misnamed(dump: Path) -> Path:
    """Beside the tensors that are understood, some whose names are not."""
    out = dump.with_name("misnamed")
    trace = open_trace(dump)
    with TraceWriter(out, engine=trace.engine, model=trace.model) as writer:
        for index, step in enumerate(trace.steps):
            tensors = {s.key: np.array(trace[s]) for s in trace.sites() if s.step == index}
            writer.step(step, tensors | {"attention_nrm-1": tensors["attn_norm-1"]})
    return edited(out, lambda told: told.pop("names"))


DUMPS: dict[str, Callable[[Model, Path], Path]] = {
    "clean": lambda model, out: dumped(model, out, RIGHT),
    "with a bug": lambda model, out: dumped(model, out, RIGHT, planted("rope-base", 1)),
    "positions that restart at 0": lambda model, out: dumped(model, out, RESTARTED),
    "names that are not understood": lambda model, out: misnamed(dumped(model, out, RIGHT)),
}
VERDICTS = {name: "agrees" if name in ("clean", "names that are not understood") else "diverges" for name in DUMPS}


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(capfd)


@pytest.fixture
def ways(
    llama: None, command: Command, request: pytest.FixtureRequest, model: Model, tmp_path: Path
) -> dict[str, Judge]:
    """Every way to have a dump judged."""

    def run(path: Path, dump: Path) -> tuple[int, dict[str, Any]]:
        ran = command("run", path, "--candidate", dump, "--out", "run")
        return ran.code, json.loads(Path("run/verdict.json").read_text())

    def several(path: Path, dump: Path) -> tuple[int, dict[str, Any]]:
        ran = command("run", path, "--candidate", dump, "--candidate", dump, "--out", "runs", "--json")
        both = json.loads(ran.out)["candidates"]
        assert len({json.dumps(told) for told in both.values()}) == 1
        return ran.code, next(iter(both.values()))

    def diff(path: Path, dump: Path) -> tuple[int, dict[str, Any]]:
        right = dumped(model, tmp_path / "right", RIGHT)
        ran = command("diff", dump, right, "--model", path, "--json")
        return ran.code, json.loads(ran.out)

    def explain(path: Path, dump: Path) -> tuple[int, dict[str, Any]]:
        return command("explain", dump, "--model", path).code, json.loads(verdict_of(dump, path).to_json())

    def gate(path: Path, dump: Path) -> tuple[int, dict[str, Any]]:
        config = tmp_path / "firstdiff.toml"
        config.write_text(GATE.format(model=path, dump=dump))
        command("gate", "--force-regen", "--out", "first")  # without a baseline every case fails
        ran = command("gate", "--out", "gate")
        return ran.code, json.loads(Path("gate/tiny/mine/verdict.json").read_text())

    def plugin(path: Path, dump: Path) -> tuple[int, dict[str, Any]]:
        verdict = FirstDiff(request).judge(path, dump)
        (written,) = request.config.stash[_OUT].rglob("verdict.json")
        return verdict.exit_code, json.loads(written.read_text())

    def compare(path: Path, dump: Path) -> tuple[int, dict[str, Any]]:
        verdict = fd.compare(dump, path)
        return verdict.exit_code, json.loads(verdict.to_json())

    return {f.__name__: f for f in (run, several, diff, explain, gate, plugin, compare)}


@pytest.mark.slow
@pytest.mark.parametrize("name", DUMPS)
def test_a_dump_has_one_verdict_whoever_judges_it(
    ways: dict[str, Judge], model: Model, tmp_path: Path, name: str
) -> None:
    dump = DUMPS[name](model, tmp_path / "dump")
    told = {way: judge(model.gguf.path, dump) for way, judge in ways.items()}
    for way, (code, record) in told.items():
        assert record["verdict"] == VERDICTS[name], way
        assert code == {"agrees": 0, "diverges": 1}[record["verdict"]], way
        assert (record["witness"] is not None) == (way not in ("explain", "compare")), way
    alike = {
        way: {
            "sites": [(s["site"], s["status"], s.get("local_error")) for s in record["sites"]],
            "notes": [note for note in record["notes"] if not note.startswith("witness: ")],
            **{key: record[key] for key in ("preflight", "explanations", "counter_check", "model", "arithmetic")},
        }
        for way, (_, record) in told.items()
    }
    for way, said in alike.items():
        assert said == alike["run"], way
    notes, checks = alike["run"]["notes"], alike["run"]["preflight"]
    assert ("restarted at 0" in checks["positions"]) == (name == "positions that restart at 0")
    assert any("1 name is not understood, such as attention_nrm-1" in n for n in notes) == name.startswith("names")


def test_a_dump_of_another_model_is_judged_by_nobody(
    command: Command, request: pytest.FixtureRequest, model: Model, tmp_path: Path
) -> None:
    path, right = model.gguf.path, dumped(model, tmp_path / "right", RIGHT)
    dump = edited(dumped(model, tmp_path / "dump", RIGHT), lambda told: told["model"].update(sha256="ab" * 32))
    said = ("is a trace of another model", "sha256 abab")
    for given in (
        ("run", path, "--candidate", dump),
        ("diff", dump, right, "--model", path),
        ("diff", right, dump, "--model", path),
        ("explain", dump, "--model", path),
    ):
        assert_refused(command(*given), 3, *said)
    (tmp_path / "firstdiff.toml").write_text(GATE.format(model=path, dump=dump))
    ran = command("gate")
    assert (ran.code, all(word in " ".join(ran.out.split()) for word in said)) == (3, True)
    for again in (lambda: fd.compare(dump, path), lambda: fd.compare(right, path, against=dump)):
        with pytest.raises(TraceError, match="is a trace of another model"):
            again()
    with pytest.raises(pytest.fail.Exception, match="is a trace of another model"):
        FirstDiff(request).judge(path, dump)


def test_a_witness_is_believed_by_diff_as_by_compare(command: Command, model: Model, tmp_path: Path) -> None:
    path = model.gguf.path
    dump = dumped(model, tmp_path / "dump", RIGHT, planted("gqa-map", 0), planted("rope-base", 1))
    doubtful = dumped(model, tmp_path / "doubtful", RIGHT, planted("gqa-map", 0))
    ran = command("diff", dump, doubtful, "--model", path, "--json")
    both, one = json.loads(ran.out), json.loads(fd.compare(dump, path, against=doubtful).to_json())
    assert (ran.code, both["verdict"]) == (1, "diverges")
    assert both["witness"].pop("judged_too")
    for key in ("sites", "witness", "notes", "preflight", "first", "explanations"):
        assert both[key] == one[key], key
    settled = [s["site"] for s in both["sites"] if "the witness leaves the reference here too" in s.get("reason", "")]
    assert settled[:2] == both["witness"]["diverges"][:2] == ["kq-0", "kqv_out-0"]
    text = " ".join(command("diff", dump, doubtful, "--model", path).out.split())
    assert "it diverges from the reference where the candidate does at kq-0, kqv_out-0" in text
    assert "where the candidate does not" not in text


def test_the_second_trace_of_a_diff_has_a_contract_to_keep_too(command: Command, model: Model, tmp_path: Path) -> None:
    right, restarted = dumped(model, tmp_path / "right", RIGHT), dumped(model, tmp_path / "restarted", RESTARTED)
    ran = command("diff", right, restarted, "--model", model.gguf.path)
    assert ran.code == 1
    assert ran.out.startswith("Before any tensor of the second trace, positions: step 1 has position 0")
    record = json.loads(command("diff", right, restarted, "--model", model.gguf.path, "--json").out)
    assert (record["verdict"], list(record["witness"]["broken"])) == ("diverges", ["positions"])


def test_what_is_to_be_known_of_the_second_trace_is_said(command: Command, model: Model, tmp_path: Path) -> None:
    right = dumped(model, tmp_path / "right", RIGHT)
    ran = command("diff", right, misnamed(right), "--model", model.gguf.path, "--json")
    notes = json.loads(ran.out)["notes"]
    assert any(note.startswith("witness: 1 name is not understood") for note in notes), notes


def test_explain_says_what_is_broken_before_all_else(command: Command, model: Model, tmp_path: Path) -> None:
    ran = command("explain", dumped(model, tmp_path / "dump", RESTARTED), "--model", model.gguf.path)
    assert ran.code == 1
    assert ran.out.startswith("Before any tensor, positions: step 1 has position 0 where 4 tokens")


def test_nothing_that_can_be_compared_is_code_4_everywhere(
    ways: dict[str, Judge], model: Model, tmp_path: Path
) -> None:
    dump = rewrite_trace(
        dumped(model, tmp_path / "whole", RIGHT), tmp_path / "dump", lambda _, x: np.zeros((3, 5), x.dtype)
    )
    for way, judge in ways.items():
        if way != "diff":  # whose second trace is right, and the verdict is of the first
            code, record = judge(model.gguf.path, dump)
            assert (code, record["verdict"]) == (4, "incomparable"), way


def test_a_model_is_hashed_once_for_all_that_is_done_with_it(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    copy = tmp_path / "copy.gguf"
    copy.write_bytes(model.gguf.path.read_bytes())
    hashed: list[object] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: (hashed.append(given), digest(*given))[1])
    trace = fd.record(copy, tokens=[1, 70, 71], engine="reference:f32", out="kept")
    fd.compare(trace, copy)
    fd.compare("kept", copy, against=trace)
    assert len(hashed) == 1
    copy.write_bytes(copy.read_bytes()[:-1] + b"\1")
    with pytest.raises(TraceError, match="another model"):
        fd.compare("kept", copy)
    assert len(hashed) == 2
