"""Engines that only give logits: right ones agree in whatever they compute, and faults are told with their layer."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from builders.black_boxes import ReferenceBox
from builders.command_line import Command, assert_refused, strict
from builders.engines import compile_engine
from builders.models import in_blocks, stored, synthetic
from builders.own_engine import SHAPE, script
from firstdiff.errors import CaptureError
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.engine import Model, open_model
from firstdiff.model.synthetic import Llama, llama_tensors
from firstdiff.probing.probing import most_runs, probe
from firstdiff.reports.terminal import render
from firstdiff.runs.run import Run
from firstdiff.verdict import Status, Verdict

Floats = npt.NDArray[np.float32]

TOKENS = (300, 45, 301, 17, 260, 303, 99, 46)
BLACK_BOX = Path(__file__).parents[1] / "engines" / "black_box.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(in_blocks("Q8_0", tmp_path_factory.mktemp("model"), n_layer=6, biases=True))


def probed(model: Model, box: ReferenceBox, folder: Path) -> Verdict:
    verdict = probe(Run(model), box, TOKENS, folder)
    assert box.runs <= most_runs(model.hp.n_layer)
    assert list(folder.iterdir()) == []
    return verdict


@pytest.mark.parametrize(
    "arithmetic",
    [
        "f32", "bf16", "f16", "tf32", "f16-operands", "bf16-operands", "ggml-cpu", "ggml-cpu+kv=f16", "f32+held=bf16",
        "f32+matrices=i8-row", "bf16+matrices=f8_e4m3-row",
    ],
)  # fmt: skip
def test_a_right_engine_agrees_in_whatever_it_computes(model: Model, tmp_path: Path, arithmetic: str) -> None:
    for last in (False, True):
        verdict = probed(model, ReferenceBox(arithmetic=arithmetic_named(arithmetic), last=last), tmp_path)
        assert verdict.verdict == "agrees", verdict.first
        assert not verdict.explanations
        assert verdict.coverage["agrees"] >= (2 if last else 6)


def test_tensors_of_a_layer_are_read_to_the_floor_of_single_operations(model: Model, tmp_path: Path) -> None:
    verdict = probed(model, ReferenceBox(), tmp_path)
    read = {s.point: s for s in verdict.sites if s.status is Status.AGREES and s.layer is not None}
    assert {"l_out", "Vcur", "attn_norm", "kq_soft_max", "kqv_out", "ffn_inp", "ffn_swiglu"} <= read.keys()
    for point in ("Vcur", "attn_norm", "kqv_out"):
        assert (read[point].local_error or 0.0) < 1e-6


@pytest.mark.parametrize(
    ("bug", "layer", "inside"),
    [
        ("rope-base", 0, "Qcur_rope and Kcur_rope at layer 0"),
        ("gqa-map", 3, "kq and kqv_out at layer 3"),
        ("activation-wrong", 5, "ffn_swiglu at layer 5"),
        ("bias-missing", 2, "at layer 2"),
        ("residual-missing", 4, "ffn_inp and l_out at layer 4"),
        ("weight-reinterpreted", 1, "at layer 1"),
        ("weight-swapped", 1, "at layer 1"),
    ],
)
def test_a_fault_at_one_layer_is_told_with_the_layer_and_the_operation(
    model: Model, tmp_path: Path, bug: str, layer: int, inside: str
) -> None:
    box = ReferenceBox([Planted(TABLE[bug], layer)])
    box.settle(model, TOKENS)
    box.runs = 0
    verdict = probed(model, box, tmp_path)
    assert verdict.first is not None
    assert verdict.first.layer == layer
    (e,) = verdict.explanations
    assert bug in {e.hypothesis, *(t.hypothesis for t in e.equals)}
    assert inside in f"{e.inside} {e.extent}"
    assert verdict.counter_check is not None
    assert verdict.counter_check.agrees
    report = render(verdict, width=200)
    assert "Dump" not in report.split("Judged:")[0]
    assert e.says in report


@pytest.mark.parametrize("layer", [0, 3])
def test_the_last_tokens_logits_are_enough_to_find_a_fault(model: Model, tmp_path: Path, layer: int) -> None:
    verdict = probed(model, ReferenceBox([Planted(TABLE["rope-base"], layer)], last=True), tmp_path)
    assert verdict.first is not None
    assert verdict.first.layer == layer
    assert [e.hypothesis for e in verdict.explanations] == ["rope-base"]


@pytest.mark.parametrize("bug", ["embed-scale", "final-norm-missing", "head-transposed", "token-offset"])
def test_faults_outside_the_layers_are_told(model: Model, tmp_path: Path, bug: str) -> None:
    verdict = probed(model, ReferenceBox([Planted(TABLE[bug])]), tmp_path)
    assert verdict.verdict == "diverges"
    named = {h for e in verdict.explanations for h in (e.hypothesis, *(t.hypothesis for t in e.equals))}
    assert bug in named


@pytest.mark.parametrize("bug", ["token-shifted", "logits-of-wrong-row"])
def test_rows_of_other_tokens_are_told_as_what_they_are(model: Model, tmp_path: Path, bug: str) -> None:
    """Nothing tells whether other tokens were run, others embedded, or rows written at other places."""
    with pytest.raises(CaptureError, match=r"the logits of token \d are those of token \d"):
        probed(model, ReferenceBox([Planted(TABLE[bug])]), tmp_path)


def test_an_engine_that_ends_at_a_probe_is_told_in_one_line(model: Model, tmp_path: Path) -> None:
    class Ends(ReferenceBox):
        def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:
            if self.runs > 3:
                raise CaptureError("--engine: the engine crashed (SIGSEGV) after 0.1 s")
            return super().logits(model, tokens, width, parts)

    with pytest.raises(CaptureError, match="crashed"):
        probe(Run(model), Ends(), TOKENS, tmp_path)
    assert list(tmp_path.iterdir()) == []


ODD = {
    "a narrow feed-forward network": ({"n_ff": 128}, TOKENS),
    "equal tokens": ({}, (5, 300, 5, 45, 5, 301)),
    "one KV head": ({"n_head_kv": 1}, TOKENS),
    "wide heads": ({"head_dim": 64}, TOKENS),
    "one layer": ({"n_layer": 1}, TOKENS),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_shapes_and_prompts_accuse_nobody(tmp_path: Path, name: str) -> None:
    shape, tokens = ODD[name]
    model = open_model(synthetic(tmp_path / "odd.gguf", **{"n_layer": 2, **shape}))
    folder = tmp_path / "probes"
    folder.mkdir()
    assert probe(Run(model), ReferenceBox(), tokens, folder).verdict == "agrees"
    wrong = probe(Run(model), ReferenceBox([Planted(TABLE["gate-up-swapped"])]), tokens, folder)
    assert wrong.first is not None
    assert wrong.first.layer == 0


def test_a_token_without_an_embedding_accuses_nobody(tmp_path: Path) -> None:
    x = np.array(dict(llama_tensors(Llama(n_layer=2)))["token_embd.weight"])
    x[17] = 0
    model = open_model(synthetic(tmp_path / "zero.gguf", tensors={"token_embd.weight": stored(x)}, n_layer=2))
    folder = tmp_path / "probes"
    folder.mkdir()
    assert probe(Run(model), ReferenceBox(), TOKENS, folder).verdict == "agrees"


def test_a_small_fault_of_all_layers_is_no_arithmetic(model: Model, tmp_path: Path) -> None:
    """Its error is within the floor of coarser arithmetics, but no less than in float32."""
    wrong = ReferenceBox([Planted(TABLE["branch-scale"], None, {"factor": 1.01})])
    verdict = probed(model, wrong, tmp_path)
    assert verdict.arithmetic["linear"] == "f32"
    assert verdict.first is not None
    assert verdict.first.layer == 0


# The command


RUN_BY = "--model {model} --tokens {tokens} --logits {logits}"


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic(tmp_path_factory.mktemp("own"), **{**SHAPE, "n_layer": 4, "n_embd": 128, "head_dim": 16})


def by(engine: Path | str) -> str:
    return f"{shlex.quote(str(engine))} {RUN_BY}"


@pytest.mark.parametrize(("bug", "layer"), [(None, None), ("gqa-map", 0), ("gelu-for-silu", 2), ("scale-missing", 3)])
def test_the_engine_in_c_is_probed_by_its_command(
    firstdiff: Command, compiler: str, own_model: Path, tmp_path: Path, bug: str | None, layer: int | None
) -> None:
    engine = compile_engine(tmp_path, bug, layer, flags=("-O0",))
    ran = firstdiff("probe", own_model, "--engine", by(engine), "--out", tmp_path / "out", "--json")
    verdict = dict(strict(ran.out))
    diverging = [site["site"] for site in verdict["sites"] if site["status"] == "diverges"]
    assert ran.code == (1 if bug else 0), ran.err
    if bug is None:
        assert not diverging
    else:
        assert diverging[0].endswith(f"-{layer}")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"verdict.json"}


@pytest.mark.llama
@pytest.mark.torch
@pytest.mark.parametrize("engine", ["llama.cpp", "transformers", "transformers-bf16"])
def test_other_peoples_engines_agree(firstdiff: Command, llama: None, tmp_path: Path, engine: str) -> None:
    model = in_blocks("Q8_0", tmp_path, n_layer=2)
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(BLACK_BOX))} {engine} {RUN_BY}"
    ran = firstdiff("probe", model, "--engine", command, "--json")
    assert ran.code == 0, ran.err + ran.out[:2000]
    assert dict(strict(ran.out))["verdict"] == "agrees"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("exit 0",), ("printed nothing and wrote nothing",)),
        (("echo no such option; exit 2",), ("ended with exit code 2", "no such option")),
        (('for last; do :; done; printf "1 2 3" > "$last"',), ("wrote 3 logits", "where 8 tokens")),
    ],
)
def test_what_an_engine_does_wrong_is_one_line(
    firstdiff: Command, own_model: Path, tmp_path: Path, lines: Sequence[str], words: Sequence[str]
) -> None:
    ran = firstdiff("probe", own_model, "--engine", by(script(tmp_path / "engine", *lines)))
    assert_refused(ran, 3, *words)


def test_a_command_without_a_place_for_logits_is_refused(firstdiff: Command, own_model: Path) -> None:
    ran = firstdiff("probe", own_model, "--engine", "true --model {model} --tokens {tokens}")
    assert_refused(ran, 2, "has no {logits}")


def test_a_command_that_runs_its_own_tokens_is_refused(firstdiff: Command, own_model: Path) -> None:
    ran = firstdiff("probe", own_model, "--engine", "true --model {model} --tokens 1,2 --logits {logits}")
    assert_refused(ran, 2, "has no {tokens}")
    assert not Path("firstdiff-runs").exists() or not any(Path("firstdiff-runs").iterdir())


def test_too_few_runs_are_refused(firstdiff: Command, compiler: str, own_model: Path, tmp_path: Path) -> None:
    engine = compile_engine(tmp_path, None, None, flags=("-O0",))
    ran = firstdiff("probe", own_model, "--runs", "3", "--engine", by(engine))
    assert_refused(ran, 2, "--runs: 3 runs of the engine do not find a layer of 4: give 16")


def test_a_prompt_of_one_kind_of_token_is_refused(firstdiff: Command, own_model: Path) -> None:
    ran = firstdiff("probe", own_model, "--tokens", "5,5,5", "--engine", f"true {RUN_BY}")
    assert_refused(ran, 2, "one kind of token only")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_end_leaves_no_file_and_no_engine(own_model: Path, tmp_path: Path, number: signal.Signals) -> None:
    engine = script(tmp_path / "engine", f"echo $$ > {tmp_path}/running", "exec sleep 600")
    command = [sys.executable, "-m", "firstdiff", "probe", str(own_model), "--engine", by(engine), "--out", "out"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = tmp_path / "running"
    for _ in range(600):
        if running.exists() and running.read_text():
            break
        time.sleep(0.1)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, "")
    assert err == "firstdiff: interrupted: nothing was recorded yet\n"
    assert not (tmp_path / "out").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(running.read_text()), 0)
