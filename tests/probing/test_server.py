"""Engines that are servers: right ones agree, a fault is told with its layer, and a bad answer in one line."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.black_boxes import TopBox, most_probable
from builders.command_line import Command, assert_refused, strict
from builders.engines import compile_engine
from builders.models import in_blocks, synthetic
from builders.own_engine import SHAPE, script
from firstdiff.errors import CaptureError
from firstdiff.hypotheses import TABLE
from firstdiff.hypotheses.planting import Planted
from firstdiff.model.arithmetic import arithmetic_named
from firstdiff.model.engine import Model, open_model
from firstdiff.model.probes.files import probe_model
from firstdiff.model.probes.most_probable import FIRST, Shown, piece
from firstdiff.model.probes.shown import own_rows, showing
from firstdiff.probing.completion import logprobs_of
from firstdiff.probing.probing import most_runs, probe
from firstdiff.runs.run import Run
from firstdiff.verdict import Verdict

TOKENS = (300, 45, 301, 17, 260, 303, 99, 46)
STAND_IN = Path(__file__).parents[1] / "engines" / "stand_in_server.py"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {**SHAPE, "n_layer": 3, "n_embd": 128, "head_dim": 16}
    return synthetic(tmp_path_factory.mktemp("model"), **shape)


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return open_model(path)


def probed(model: Model, box: TopBox, folder: Path) -> Verdict:
    verdict = probe(Run(model), box, TOKENS, folder, top=257)
    assert box.runs <= most_runs(model.hp.n_layer)
    assert list(folder.iterdir()) == []
    return verdict


# What the most probable tokens show


@pytest.mark.parametrize("count", [2, 5, 20, 128])
def test_logits_come_back_from_log_probabilities(count: int) -> None:
    rng = np.random.default_rng(count)
    right = np.zeros(FIRST + 2 * (count - 1) + 50, np.float32)
    right[FIRST : FIRST + 2 * (count - 1)] = (rng.standard_normal((count - 1, 1)) * [4, -4]).reshape(-1)
    shown = Shown(tuple(range(count - 1)), 4.0)
    made = shown.logits(most_probable(right, count))
    assert made is not None
    assert np.abs(made - right).max() < 4e-6
    assert shown.logits(most_probable(right, count - 1)) is None


@pytest.mark.parametrize("digits", ["bf16", "f16"])
def test_what_a_logit_was_rounded_to_comes_back_too(digits: str) -> None:
    from firstdiff.model.rounding import round_to

    right = np.zeros(FIRST + 200, np.float32)
    right[FIRST : FIRST + 38] = round_to(
        (np.random.default_rng(0).standard_normal((19, 1)) * [4, -4]).reshape(-1), digits
    )
    made = Shown(tuple(range(19)), 4.0).logits(most_probable(right, 20))
    assert np.array_equal(made, right[None])


@pytest.mark.llama
def test_llama_cpp_makes_exactly_the_ids_of_a_prompts_text(llama: None, model: Model, tmp_path: Path) -> None:
    import llama_cpp

    made = showing(model.gguf, probe_model(model.gguf, (0,), TOKENS), np.arange(19))
    path = made.write(tmp_path / "probe.gguf")
    engine = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    text = "".join(map(piece, made.tokens))
    assert engine.tokenize(text.encode(), add_bos=bool(engine._model.add_bos_token())) == list(made.tokens)
    for token in range(FIRST, made.tensors["output.weight"].shape[0]):
        assert engine.detokenize([token]).decode() == piece(token)


def test_an_output_matrix_that_nothing_is_known_of_is_left_out(model: Model) -> None:
    assert own_rows(model.gguf, TOKENS, np.array([], np.intp)) is None


# Engines


@pytest.mark.slow
@pytest.mark.parametrize("most", [2, 5, 20, 257])
@pytest.mark.parametrize("arithmetic", ["f32", "bf16", "f16-operands", "ggml-cpu"])
def test_a_right_engine_agrees_in_whatever_it_computes(
    model: Model, tmp_path: Path, arithmetic: str, most: int
) -> None:
    verdict = probed(model, TopBox(arithmetic=arithmetic_named(arithmetic), most=most), tmp_path)
    assert verdict.verdict == "agrees", verdict.first
    assert most == 2 or verdict.arithmetic["linear"] in (arithmetic, "tf32")  # which has as many digits as f16
    shown = min(most - 1, 128)
    which = "all" if shown == 128 else str(shown)
    notes = " ".join(verdict.notes)
    numbers = "1 number" if shown == 1 else f"{shown} numbers"
    assert f"{numbers} of the prompt's last token: {which} of the 128 coordinates" in notes
    assert ("only the other coordinates" in notes) == (shown < 128)
    assert "rows of the model's own output matrix were judged" in notes
    assert "decoding was not judged: a server is not told how many tokens" in notes
    assert "{parts}" not in notes


@pytest.mark.slow
@pytest.mark.parametrize("most", [5, 257])
@pytest.mark.parametrize(("bug", "layer"), [("rope-base", 0), ("gqa-map", 1), ("residual-missing", 2)])
def test_a_fault_is_told_with_its_layer(model: Model, tmp_path: Path, bug: str, layer: int, most: int) -> None:
    verdict = probed(model, TopBox([Planted(TABLE[bug], layer)], most=most), tmp_path)
    assert verdict.first is not None
    assert verdict.first.layer == layer
    (e,) = verdict.explanations
    assert e.hypothesis is None or bug in {e.hypothesis, *(t.hypothesis for t in e.equals)}


class WrongKernel(TopBox):
    """It is off by a hundredth where the last norm is the model's own."""

    def logits(self, model: Path, tokens: Any, width: int, parts: Any = ()) -> Any:
        norm = open_model(model).gguf.raw("output_norm.weight").view(np.float32)
        return super().logits(model, tokens, width, parts) * np.float32(1.0 if (norm == 1).all() else 1.01)


@pytest.mark.slow
@pytest.mark.parametrize("box", [TopBox(), WrongKernel()])
def test_rows_of_the_models_own_output_matrix_are_read(tmp_path: Path, box: TopBox) -> None:
    folder = tmp_path / "probes"
    folder.mkdir()
    of = synthetic(tmp_path / "tied.gguf", tied=True, n_layer=1, n_embd=64, n_ff=64)
    verdict = probed(open_model(of), box, folder)
    assert "19 rows of the model's own output matrix were judged" in " ".join(verdict.notes)
    assert (str(verdict.first.site) if verdict.first else None) == (
        "result_output" if isinstance(box, WrongKernel) else None
    )


@pytest.mark.slow
def test_rows_of_a_quantised_output_matrix_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "probes"
    folder.mkdir()
    verdict = probed(open_model(in_blocks("Q8_0", tmp_path, n_layer=1)), TopBox(), folder)
    assert verdict.verdict == "agrees", verdict.first
    assert "19 rows of the model's own output matrix were judged" in " ".join(verdict.notes)


@pytest.mark.slow
@pytest.mark.parametrize("bug", ["final-norm-missing", "embed-scale"])
def test_faults_outside_the_layers_are_told(model: Model, tmp_path: Path, bug: str) -> None:
    verdict = probed(model, TopBox([Planted(TABLE[bug])]), tmp_path)
    assert verdict.verdict == "diverges"
    assert bug in {h for e in verdict.explanations for h in (e.hypothesis, *(t.hypothesis for t in e.equals))}


def test_an_engine_that_gives_fewer_later_is_told_so(model: Model, tmp_path: Path) -> None:
    class Fewer(TopBox):
        def logits(self, model: Path, tokens: Any, width: int, parts: Any = ()) -> Any:
            self.most -= 1
            return super().logits(model, tokens, width, parts)

    with pytest.raises(CaptureError, match="it gives 18 of the most probable tokens of a model, where it gave 19"):
        probed(model, Fewer(), tmp_path)


# What servers answer


def entry(token: int, logprob: object) -> dict[str, object]:
    return {"token": piece(token), "logprob": logprob}


def answer(*entries: object) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": list(entries)}]}}]}


def texts(**of: object) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"top_logprobs": [of]}}]}


def test_every_usual_form_of_log_probabilities_is_read() -> None:
    right = np.full((1, 320), np.nan, np.float32)
    right[0, [0, 300, 301]] = -3.141592653, -1.234567891, -2.345678912
    three = (-1.234567891, -2.345678912, -3.141592653)
    ids = [{"id": i, "token": "?", "logprob": x} for i, x in zip((300, 301, 7), three, strict=True)]
    for zero in ("", "</s>", "\ufffd\ufffd", "a", "bytes:\\xe2"):
        written = texts(**{piece(300): three[0], "token_id:301": three[1], zero: three[2]})
        assert np.array_equal(logprobs_of(written, TOKENS, 320), right, equal_nan=True)
    assert np.array_equal(logprobs_of(answer(*ids), TOKENS, 320), right, equal_nan=True)
    as_list = {"choices": [{"logprobs": {"top_logprobs": [ids]}}], "usage": {"prompt_tokens": len(TOKENS)}}
    assert np.array_equal(logprobs_of(as_list, TOKENS, 320), right, equal_nan=True)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"choices": [{"text": "a"}]}, "no choices[0].logprobs: start it with log probabilities"),
    "none at all": ({}, "no choices[0].logprobs"),
    "none of a token": ({"choices": [{"logprobs": {"top_logprobs": []}}]}, "no log probabilities of the token behind"),
    "NaN": (answer(entry(300, float("nan"))), "the log probability of '丩' is nan, which says nothing of its logit"),
    "one-hot": (answer(entry(300, 0.0), entry(301, -9999.0)), "is -9999.0, which says nothing"),
    "a text": (answer(entry(300, "-1")), "is '-1', which says nothing"),
    "texts of another model": (
        texts(**{" the": -1.1, " a": -2.2}),
        "names the token ' the', which the model does not have",
    ),
    "an id too many": (answer({"id": 320, "logprob": -1.1}), "names the token 320, which the model does not have"),
    "a letter too many": (texts(**{piece(320): -1.1}), "which the model does not have"),
    "no token": (answer({"logprob": -1.1}), "names the token None"),
    "no number": (answer(5), "is no log probability: 5"),
    "twice": (
        answer(entry(300, -1.123456789), entry(300, -2.123456789)),
        "two log probabilities for '丩', -1.12346 and",
    ),
    "rounded": (texts(**{piece(300): -1.1234, piece(301): -2.5}), "rounded to 5 decimals or fewer (-1.1234)"),
    "a prompt with a BOS": ({"usage": {"prompt_tokens": 9}}, "it ran a prompt of 9 tokens, where 8 were given"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_answer_is_told_in_one_line(what: str) -> None:
    bad, words = BAD[what]
    with pytest.raises(CaptureError, match="--server: ") as caught:
        logprobs_of(bad, TOKENS, 320)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# The command


def served(*options: object) -> str:
    words = (sys.executable, "-I", "-S", STAND_IN, *options)
    return " ".join(shlex.quote(str(word)) for word in words) + " --model {model} --port {port}"


@pytest.mark.parametrize(
    ("bug", "layer", "options"),
    [
        (None, None, ("--answers", "llama.cpp", "--most", 1000)),
        (None, None, ("--answers", "vLLM")),
        ("gqa-map", 0, ("--most", 5)),
        ("gelu-for-silu", 2, ("--answers", "llama.cpp")),
    ],
)
def test_a_server_around_the_engine_in_c_is_probed(
    firstdiff: Command, compiler: str, path: Path, tmp_path: Path, bug: str, layer: int, options: tuple[object, ...]
) -> None:
    engine = compile_engine(tmp_path, bug, layer, flags=("-O0",))
    ran = firstdiff(
        "probe", path, "--server", served("--engine", engine, *options), "--out", tmp_path / "out", "--json"
    )
    verdict = dict(strict(ran.out))
    assert ran.code == (1 if bug else 0), ran.err
    diverging = [site["site"] for site in verdict["sites"] if site["status"] == "diverges"]
    assert diverging[:1] == ([] if bug is None else [f"l_out-{layer}"])
    assert {of.name for of in (tmp_path / "out").iterdir()} == {"verdict.json"}


@pytest.mark.slow
@pytest.mark.llama
def test_llama_cpp_pythons_own_server_agrees(firstdiff: Command, llama: None, tmp_path: Path) -> None:
    model = synthetic(tmp_path / "model.gguf", **{**SHAPE, "n_layer": 1})
    own = f"{shlex.quote(sys.executable)} -m llama_cpp.server --model {{model}} --port {{port}} --n_threads 1"
    ran = firstdiff("probe", model, "--server", own, "--json")
    assert ran.code == 0, ran.err + ran.out[:2000]
    assert dict(strict(ran.out))["verdict"] == "agrees"
    refused = firstdiff("probe", model, "--server", f"{own} --logits_all false")
    assert_refused(refused, 3, "status 500", "start it with log probabilities (llama-cpp-python: --logits_all true)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("an error", ("/v1/completions answers with status 500", '{"error": "out of\\nmemory"}')),
        ("logits_all", ("status 500", "--logits_all true")),
        ("not found", ("status 404", "let it serve OpenAI's text completions")),
        ("no JSON", ("is no JSON object: <html>hello</html>",)),
        ("a list", ("is no JSON object: [1, 2]",)),
        ("deep", ("is no JSON object: [[[[",)),
        ("no logprobs", ("no choices[0].logprobs",)),
        ("nothing", ("no choices[0].logprobs",)),
        ("end", ("it ended with exit code 3 before it answered", "its last words: ready")),
        ("break off", ("it broke off its answer from /v1/completions",)),
        ("drip", ("did not answer on 127.0.0.1:", "within 4 s")),
        ("loading", ("did not answer on 127.0.0.1:", "but with status 503: Loading model")),
        ("flood", ("answers with more than 16,777,216 bytes",)),
    ],
)
def test_what_a_server_does_wrong_is_one_line(
    firstdiff: Command, path: Path, what: str, words: tuple[str, ...]
) -> None:
    seconds = "4" if what in ("drip", "loading") else "30"  # on a busy machine a server takes a second to be there
    ran = firstdiff("probe", path, "--timeout", seconds, "--server", served("--answers", what))
    assert_refused(ran, 3, "firstdiff: --server: ", *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sh -c 'echo no such option; exit 2' {model} {port}", ("it ended with exit code 2", "no such option")),
        ("sh -c 'kill -9 $$' {model} {port}", ("it crashed (SIGKILL) before it answered",)),
        ("sleep 60 {model} {port}", ("it did not answer on 127.0.0.1:", "within 1 s")),
        ("no-such-server {model} {port}", ("not found: no-such-server",)),
    ],
)
def test_a_server_that_does_not_start_is_one_line(
    firstdiff: Command, path: Path, command: str, words: tuple[str, ...]
) -> None:
    command = command.replace("sleep 60", "sh -c 'sleep 60'")
    assert_refused(firstdiff("probe", path, "--timeout", "1", "--server", command), 3, *words)


@pytest.mark.slow
def test_no_process_of_a_server_is_left(firstdiff: Command, path: Path, tmp_path: Path) -> None:
    server = script(tmp_path / "server", "sleep 60 &", 'echo "$! $$" > "$0.pids"', "wait")
    assert_refused(
        firstdiff("probe", path, "--timeout", "3", "--server", f"{server} {{model}} {{port}}"), 3, "within 3 s"
    )
    pids = (tmp_path / "server.pids").read_text().split()
    for _ in range(100):  # a process that was told to end needs a moment
        if all(map(has_ended, pids)):
            break
        time.sleep(0.1)
    assert all(map(has_ended, pids))


def has_ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_server_that_keeps_its_model_is_told_so(
    firstdiff: Command, compiler: str, path: Path, model: Model, tmp_path: Path
) -> None:
    kept = showing(model.gguf, probe_model(model.gguf, (0,), TOKENS), np.arange(19)).write(tmp_path / "kept.gguf")
    engine = compile_engine(tmp_path, None, None, flags=("-O0",))
    ran = firstdiff("probe", path, "--top", "20", "--server", served("--engine", engine, "--kept", kept))
    assert_refused(ran, 3, "--server: it gave the same logits for two models")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--server", "true {model}"), "has no {port}, which is another one for each run"),
        (("--server", "true {model} {port} {logits}"), "{logits} is not known: there are {model}, {port}"),
        (("--server", "true {model} {port}", "--top", "1"), "--top: 1 token says nothing of a logit"),
        (("--engine", "true {model} {tokens} {logits}", "--top", "9"), "--top is for --server only"),
        (("--engine", "true", "--server", "true"), "not allowed with"),
        ((), "one of the arguments --engine --server is required"),
    ],
)
def test_wrong_usage_is_refused(firstdiff: Command, path: Path, options: tuple[str, ...], words: str) -> None:
    assert_refused(firstdiff("probe", path, *options), 2, words)
