"""Engines that run a prompt in parts: right ones agree, in whatever they compute one token, and the cache is judged."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from builders.black_boxes import ReferenceBox
from builders.command_line import Command, strict
from builders.engines import compile_engine
from builders.models import in_blocks, synthetic
from builders.own_engine import SHAPE
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted, Planting
from firstdiff.model.arithmetic import F32, Arithmetic, arithmetic_named
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probe import Call
from firstdiff.model.value import Value
from firstdiff.probing.asking import steps_of
from firstdiff.probing.probing import most_runs, parts_of, probe
from firstdiff.runs.run import Run
from firstdiff.verdict import Verdict

TOKENS = (300, 45, 301, 17, 260, 303, 99, 46)
BLACK_BOX = Path(__file__).parents[1] / "engines" / "black_box.py"
RUN_BY = "--model {model} --tokens {tokens} --logits {logits} --parts {parts}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(in_blocks("Q8_0", tmp_path_factory.mktemp("model"), n_layer=6, biases=True))


def probed(model: Model, box: ReferenceBox, folder: Path) -> Verdict:
    verdict = probe(Run(model), box, TOKENS, folder)
    assert box.runs <= most_runs(model.hp.n_layer, decodes=True)
    assert list(folder.iterdir()) == []
    return verdict


@pytest.mark.parametrize("count", range(2, 20))
@pytest.mark.parametrize("last", [False, True])
def test_parts_are_the_whole_prompt_and_end_with_one_token(count: int, *, last: bool) -> None:
    parts = parts_of(count, last=last)
    assert sum(parts) == count
    assert parts[-1] == 1
    assert min(parts) == 1
    assert len(parts) == 2 if last or count < 4 else len(parts) > 2


@pytest.mark.parametrize("arithmetic", ["f32", "bf16", "ggml-cpu", "f16-operands", "f32+matrices=i8-row"])
def test_a_right_engine_that_decodes_agrees(model: Model, tmp_path: Path, arithmetic: str) -> None:
    for last in (False, True):
        box = ReferenceBox(arithmetic=arithmetic_named(arithmetic), last=last, decodes=True)
        verdict = probed(model, box, tmp_path)
        assert verdict.verdict == "agrees", verdict.first
        assert any("the prompt in parts of" in note for note in verdict.notes)


def test_an_engine_that_is_not_told_how_many_tokens_to_run_is_not_judged_so(model: Model, tmp_path: Path) -> None:
    verdict = probed(model, ReferenceBox(), tmp_path)
    assert any("decoding was not judged: for that the command needs {parts}" in note for note in verdict.notes)


@dataclass(eq=False)
class TwoKernels(ReferenceBox):
    """An engine that computes a single token in another arithmetic than several."""

    of_one: Arithmetic = F32

    def run(self, model: Model, tokens: Sequence[int], parts: Sequence[int] = ()) -> npt.NDArray[np.float32]:
        steps, several, one = steps_of(tokens, parts), self.arithmetic, self.of_one

        class Both(Planting):
            def run(self, call: Call) -> Value:
                self.arithmetic = one if call.step >= 0 and len(steps[call.step].tokens) == 1 else several
                return super().run(call)

        with np.errstate(all="ignore"):
            logits = model.forward(steps, Both(several, model, self.planted))
            return np.concatenate([np.array(x, np.float32) for x in logits])


@pytest.mark.parametrize(
    ("several", "one"),
    [("f32", "f16-operands"), ("f32", "ggml-cpu"), ("bf16-operands", "f32"), ("f16-operands", "ggml-cpu")],
)
def test_another_arithmetic_for_one_token_is_no_fault(model: Model, tmp_path: Path, several: str, one: str) -> None:
    box = TwoKernels(arithmetic=arithmetic_named(several), of_one=arithmetic_named(one), decodes=True)
    verdict = probed(model, box, tmp_path)
    assert verdict.verdict == "agrees", verdict.first


@pytest.mark.parametrize("layer", [0, 2, 5])
@pytest.mark.parametrize("bug", ["cache-stale", "cache-slot", "rope-position"])
@pytest.mark.parametrize("last", [False, True])
def test_what_goes_wrong_in_decoding_only_is_told(
    model: Model, tmp_path: Path, bug: str, layer: int, *, last: bool
) -> None:
    verdict = probed(model, ReferenceBox([Planted(TABLE[bug], layer)], last=last, decodes=True), tmp_path)
    assert verdict.first is not None
    assert (verdict.first.layer, verdict.first.step) == (layer, 1)
    assert [e.hypothesis for e in verdict.explanations] == [bug]
    assert len(verdict.tokens) == (2 if last else 4)
    assert any("all tokens at once are right" in note for note in verdict.notes)


@pytest.mark.parametrize(("bug", "layer"), [(None, None), ("rope-position", 1), ("cache-stale", 2)])
def test_the_engine_in_c_is_probed_in_parts(
    firstdiff: Command, compiler: str, tmp_path: Path, bug: str | None, layer: int | None
) -> None:
    model = synthetic(tmp_path, **{**SHAPE, "n_layer": 4, "n_embd": 128, "head_dim": 16})
    engine = compile_engine(tmp_path, bug, layer, flags=("-O0",))
    ran = firstdiff("probe", model, "--engine", f"{shlex.quote(str(engine))} {RUN_BY}", "--json")
    verdict = dict(strict(ran.out))
    assert ran.code == (1 if bug else 0), ran.err
    if bug is not None:
        assert verdict["first"]["site"] == f"l_out-{layer}@1"
        assert bug in {e["hypothesis"] for e in verdict["explanations"]}


@pytest.mark.llama
@pytest.mark.torch
@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_other_peoples_engines_decode_rightly(firstdiff: Command, llama: None, tmp_path: Path, engine: str) -> None:
    model = in_blocks("Q8_0", tmp_path, n_layer=2)
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(BLACK_BOX))} {engine} {RUN_BY}"
    ran = firstdiff("probe", model, "--engine", command, "--json")
    assert ran.code == 0, ran.err + ran.out[:2000]
    assert any("decoding: the prompt in parts of" in note for note in dict(strict(ran.out))["notes"])
