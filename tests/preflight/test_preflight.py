"""Preflight: positions, the model a trace states, and the four checks together."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from builders.models import synthetic
from firstdiff.dumps import Step, Trace, TraceError, TraceWriter, open_trace
from firstdiff.engines.identity import identity
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.model.engine import Model, open_model
from firstdiff.preflight.check import preflight, prompt_of
from firstdiff.preflight.model import check_model
from firstdiff.preflight.positions import check_positions

TEXT = "tell me more"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    shape = {"n_layer": 1, "n_embd": 64, "n_head": 4, "n_head_kv": 2, "head_dim": 16, "n_ff": 96, "n_ctx": 128}
    return open_model(synthetic(tmp_path_factory.mktemp("preflight"), **shape))


def steps(*positions: list[int]) -> list[Step]:
    return [Step(tuple([5] * len(p)), tuple(p)) for p in positions]


PROMPT = list(range(17))


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [
        ([PROMPT, [17], [18]], "agrees"),
        ([PROMPT, [0]], "step 1 has position 0 where 17 tokens are cached: restarted at 0"),
        ([PROMPT, [18]], "step 1 has position 18 where 17 tokens are cached: off by one, ahead"),
        ([PROMPT, [16], [17], [18]], "off by one, behind; so are 2 later steps"),
        ([PROMPT, [30]], "13 ahead (a gap)"),
        ([[1, 2, 3]], "step 0 has position 1 where 0 tokens are cached: off by one, ahead"),
        ([[0, 1, 3, 4]], "(token 2 of the step): a gap within the step, from 1 to 3"),
        ([[0, 1, 1, 2]], "a repetition within the step, from 1 to 1"),
        ([[0, 0, 0]], "all of its tokens are at position 0"),
        ([[2, 1, 0]], "a step back within the step, from 2 to 1"),
    ],
)
def test_positions_follow_on_the_cache_or_it_is_said_how_not(positions: list[list[int]], sentence: str) -> None:
    check = check_positions(steps(*positions))
    assert check.agrees == (sentence == "agrees")
    assert check.sentence.endswith(sentence) if sentence != "agrees" else check.sentence == sentence
    assert check.plain()["says"] == check.sentence


def trace_of(said: dict[str, Any]) -> Trace:
    return Trace.from_arrays([Step((1,), (0,))], {}, engine={}, model=said)


def test_a_trace_that_says_nothing_of_its_model_is_not_compared(model: Model) -> None:
    check = check_model(model, trace_of({}))
    assert check.agrees
    assert check.sentence == "not recorded"


def test_what_a_trace_says_of_its_model_agrees_under_every_convention(model: Model) -> None:
    ours = {"n_head": 4, "n_head_kv": 2, "n_layer": 1, "n_embd": 64, "head_dim": 16, "rms_eps": 1e-5, "n_ctx": 64}
    theirs = {"num_attention_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000, "max_position_embeddings": 128}
    for table in (ours, theirs):
        said = {"architecture": "llama", "hyperparameters": table} | identity(model).stated
        check = check_model(model, trace_of(said))
        assert check.sentence == "agrees"
        assert set(table) < set(check.compared)


@pytest.mark.parametrize("name", ["mistral", "mixtral"])
def test_an_architecture_by_hugging_face_s_name_for_it_agrees(model: Model, name: str) -> None:
    assert check_model(model, trace_of({"architecture": name})).sentence == "agrees"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"hyperparameters": {"rope_base": 500000.0}}, "rope_base is 500000 in the trace and 10000 in the file"),
        ({"hyperparameters": {"n_head_kv": 4}}, "n_head_kv is 4 in the trace and 2 in the file"),
        ({"hyperparameters": {"rms_eps": 1e-6}}, "rms_eps is 1e-06 in the trace and 1e-05 in the file"),
        ({"hyperparameters": {"n_ctx": 4096}}, "n_ctx is 4096 in the trace and 128 in the file"),
        ({"hyperparameters": {"n_layer": "many"}}, "n_layer is many in the trace and 1 in the file"),
        ({"hyperparameters": {"n_layer": True}}, "n_layer is True in the trace and 1 in the file"),
        ({"architecture": "qwen3"}, "architecture is qwen3 in the trace and llama in the file"),
        ({"architecture": "gemma3_text"}, "architecture is gemma3_text in the trace and llama in the file"),
        ({"architecture": ["llama"]}, "architecture is ['llama'] in the trace and llama in the file"),
        ({"file": "another.gguf"}, "file is another.gguf in the trace and model.gguf in the file"),
        ({"sha256": "00ff"}, "sha256 is 00ff in the trace and abcd in the file"),
    ],
)
def test_a_difference_is_listed_with_both_values(model: Model, said: dict[str, Any], sentence: str) -> None:
    check = check_model(model, trace_of(said), sha256="abcd")
    assert not check.agrees
    assert check.sentence == sentence


def test_hyperparameters_that_are_no_table_are_refused(model: Model) -> None:
    with pytest.raises(TraceError, match="must be an object"):
        check_model(model, trace_of({"hyperparameters": [1, 2]}))


def written(folder: Path, model: Model, ids: list[int], *later: int) -> Trace:
    with TraceWriter(folder, engine={}, model=identity(model).stated) as writer:
        x = np.zeros((len(ids), 64), np.float32)
        writer.step(Step(tuple(ids), tuple(range(len(ids)))), {"embd": x})
        for position in later:
            writer.step(Step((7,), (position,)), {"embd": x[:1]})
    return open_trace(folder)


@pytest.mark.llama
def test_a_sound_trace_passes_every_check(model: Model, tmp_path: Path) -> None:
    with LlamaCpp(model.gguf.path, vocabulary_only=True) as engine:
        ids = engine.tokenize(TEXT)
        trace = written(tmp_path / "trace", model, ids, len(ids))
        save_file({"output_norm.weight": model.weights["output_norm.weight"].values()},
                  tmp_path / "trace" / "weights.safetensors")  # fmt: skip
        found = preflight(model, trace, engine=engine, text=TEXT)
    assert found == {"tokens": "agrees", "positions": "agrees", "weights": "agrees", "model": "agrees"}


@pytest.mark.llama
def test_every_failed_check_says_its_sentence(model: Model, tmp_path: Path) -> None:
    with LlamaCpp(model.gguf.path, vocabulary_only=True) as engine:
        ids = engine.tokenize(TEXT)
        trace = written(tmp_path / "trace", model, ids[1:], 0)
        save_file({"output_norm.weight": 20 * model.weights["output_norm.weight"].values()},
                  tmp_path / "trace" / "weights.safetensors")  # fmt: skip
        found = preflight(model, trace, engine=engine, text=TEXT, sha256="abcd")
    assert "token-missing-bos" in found["tokens"]
    assert "restarted at 0" in found["positions"]
    assert found["weights"] == "output_norm.weight is 20 times the file's"
    assert "sha256" in found["model"]


def test_what_was_not_given_is_not_claimed(model: Model, tmp_path: Path) -> None:
    found = preflight(model, written(tmp_path / "trace", model, [1, 5, 9]))
    assert found == {
        "tokens": "not checked",
        "positions": "agrees",
        "weights": "not recorded",
        "model": "agrees",
    }


@pytest.mark.llama
def test_a_prompt_fed_one_token_at_a_time_is_put_together(model: Model, tmp_path: Path) -> None:
    with LlamaCpp(model.gguf.path, vocabulary_only=True) as engine:
        ids = engine.tokenize(TEXT)
        with TraceWriter(tmp_path / "trace", engine={}, model={}) as writer:
            for position, token in enumerate([*ids, 9]):
                writer.step(Step((token,), (position,)), {"embd": np.zeros((1, 64), np.float32)})
        assert preflight(model, open_trace(tmp_path / "trace"), engine=engine, text=TEXT)["tokens"] == "agrees"


def test_the_prompt_is_all_that_was_fed_before_decoding() -> None:
    def steps(*lengths: int) -> list[Step]:
        ends = np.cumsum((0, *lengths))
        return [Step(tuple(range(a, b)), tuple(range(a, b))) for a, b in itertools.pairwise(ends.tolist())]

    assert prompt_of(steps(7, 1, 1), 6) == tuple(range(7))
    assert prompt_of(steps(4, 4, 2, 1, 1), 10) == tuple(range(10))
    assert prompt_of(steps(1, 1, 1, 1, 1), 3) == (0, 1, 2)
    assert prompt_of(steps(1), 1) == (0,)
