"""Recording SmolLM2 from PyTorch: every point at every layer and step, and nothing is changed by looking."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import torch
import transformers

from builders.judging import judge
from builders.recordings import ATTENTION, FEED_FORWARD, assert_logits_are_unchanged, points
from firstdiff.dumps import Site, Trace
from firstdiff.model.engine import open_model
from firstdiff.torch import record

pytestmark = pytest.mark.usefixtures("one_thread")

# SmolLM2's tokens of "The capital of France is Paris, and the capital of Italy".
PROMPT = [504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282, 7158]
DECODED = 2
HALVED = ("Qcur", "Kcur", "Qcur_rope", "Kcur_rope", "k_cache")


@pytest.fixture(scope="module")
def loaded(smollm2: Path) -> Any:
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def recorded(loaded: Any) -> Trace:
    return record(loaded, PROMPT, decode=DECODED)


def test_every_point_is_recorded_at_every_layer_and_step_in_execution_order(recorded: Trace) -> None:
    assert len(recorded.steps) == 1 + DECODED
    for step in range(1 + DECODED):
        assert points(recorded, None, step) == ["embd", "result_norm", "result_output"]
        for layer in range(30):
            assert points(recorded, layer, step) == [*ATTENTION, *FEED_FORWARD]
    layers = [site.layer for site in recorded if site.step == 0 and site.layer is not None]
    assert layers == sorted(layers)


def test_shapes_are_those_of_the_design(recorded: Trace) -> None:
    for step, (t, s) in enumerate([(12, 12), (1, 13), (1, 14)]):
        wanted = {
            **dict.fromkeys(("attn_norm", "kqv_out", "attn_out", "ffn_inp"), (t, 576)),
            **dict.fromkeys(("ffn_norm", "ffn_out", "l_out"), (t, 576)),
            **dict.fromkeys(("ffn_gate", "ffn_up", "ffn_swiglu"), (t, 1536)),
            **dict.fromkeys(("Qcur", "Qcur_rope"), (t, 9, 64)),
            **dict.fromkeys(("Kcur", "Vcur", "Kcur_rope"), (t, 3, 64)),
            **dict.fromkeys(("k_cache", "v_cache"), (s, 3, 64)),
            **dict.fromkeys(("kq", "kq_soft_max"), (9, t, s)),
        }
        assert {p: recorded.shape(Site(step, 29, p)) for p in points(recorded, 29, step)} == wanted
        assert recorded.shape(Site(step, None, "embd")) == (t, 576)
        assert recorded.shape(Site(step, None, "result_output")) == (t, 49152)
    assert {recorded.dtype(site) for site in recorded} == {"f32"}


def test_the_trace_says_what_ran(recorded: Trace) -> None:
    version = transformers.__version__
    assert recorded.engine == {
        "name": "transformers", "version": version, "backend": "cpu/float32", "arithmetic": "f32",
    }  # fmt: skip
    assert recorded.model == {"class": "LlamaForCausalLM", "architecture": "llama"}
    first, *later = recorded.steps
    assert (list(first.tokens), first.positions) == (PROMPT, tuple(range(12)))
    assert [step.positions for step in later] == [(12,), (13,)]


def test_recording_changes_no_bit_of_the_logits(loaded: Any, recorded: Trace) -> None:
    assert_logits_are_unchanged(loaded, recorded)


def test_decoding_is_greedy(recorded: Trace) -> None:
    for step, after in enumerate(recorded.steps[1:]):
        assert after.tokens == (int(recorded[Site(step, None, "result_output")][-1].argmax()),)


def test_probabilities_are_those_of_the_recorded_scores(recorded: Trace) -> None:
    for site in [s for s in recorded if s.point == "kq_soft_max"]:
        p = recorded[site]
        np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
        scores = torch.tensor(recorded[Site(site.step, site.layer, "kq")]) * 64**-0.5
        hidden = torch.ones(p.shape[-2:], dtype=torch.bool).triu(1 + p.shape[-1] - p.shape[-2])
        np.testing.assert_array_equal(p, scores.masked_fill(hidden, -torch.inf).softmax(-1).numpy())


def test_the_first_token_attends_to_itself_alone(recorded: Trace) -> None:
    for layer in range(30):
        repeated = recorded[Site(0, layer, "Vcur")][0].repeat(3, axis=0)  # each KV head serves three heads
        np.testing.assert_array_equal(recorded[Site(0, layer, "kqv_out")][0], repeated.ravel())


def test_caches_hold_the_rotated_keys_and_the_values_of_every_step(recorded: Trace) -> None:
    for new, cache in (("Kcur_rope", "k_cache"), ("Vcur", "v_cache")):
        appended = np.concatenate([recorded[Site(step, 7, new)] for step in range(1 + DECODED)])
        np.testing.assert_array_equal(recorded[Site(DECODED, 7, cache)], appended)


def test_a_layers_output_is_what_the_next_one_starts_from(loaded: Any, recorded: Trace) -> None:
    for layer in range(29):
        norm = loaded.model.layers[layer + 1].input_layernorm
        with torch.no_grad():
            after = norm(torch.tensor(recorded[Site(0, layer, "l_out")])).numpy()
        np.testing.assert_array_equal(recorded[Site(0, layer + 1, "attn_norm")], after)
        residual = recorded[Site(0, layer, "ffn_inp")] + recorded[Site(0, layer, "ffn_out")]
        np.testing.assert_array_equal(recorded[Site(0, layer, "l_out")], residual)


def test_every_site_of_a_real_model_agrees_with_the_reference(smollm2: Path, recorded: Trace) -> None:
    """Q and K apart from their order: conversion to GGUF interleaves the halves that transformers rotates."""
    tensors = {site: recorded[site] for site in recorded}
    for site in [s for s in tensors if s.point in HALVED]:
        halves = tensors[site].reshape(*tensors[site].shape[:-1], 2, -1)
        tensors[site] = halves.swapaxes(-1, -2).reshape(tensors[site].shape)
    engine = {"name": "transformers", "arithmetic": "f32"}

    verdict = judge(open_model(smollm2), Trace.from_arrays(recorded.steps, tensors, engine=engine, model={}))

    assert {site.status.value for site in verdict.sites} == {"agrees"}
    assert len(verdict.sites) == len(recorded.sites())


def test_a_trace_on_disk_is_the_one_in_memory(loaded: Any, recorded: Trace, tmp_path: Path) -> None:
    written = record(loaded, PROMPT, decode=DECODED, out=tmp_path / "run")

    assert written.path == tmp_path / "run"
    assert written.complete
    assert (written.engine, written.model, written.steps) == (recorded.engine, recorded.model, recorded.steps)
    assert written.sites() == recorded.sites()
    for site in recorded:
        np.testing.assert_array_equal(written[site], recorded[site])
