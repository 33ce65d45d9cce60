"""llama.cpp's CPU backend, recorded and judged against the reference: every site agrees, on every kind of model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builders.engines import recorded_by_llama_cpp
from builders.judging import replayed
from builders.models import FILE_TYPES, MIXED, SMOLLM2, in_blocks, in_blocks_of_ggml, quantised, synthetic
from builders.tiny_models import tiny
from builders.traces import MemoryWriter
from firstdiff.dumps import Site, Trace, TraceWriter
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.engines.llamacpp_capture import capture
from firstdiff.model.arithmetic import GGML_CPU
from firstdiff.model.dense import NODES
from firstdiff.model.engine import Model, open_model
from firstdiff.model.gguf import open_gguf
from firstdiff.model.quants import SUPPORTED
from firstdiff.verdict import SiteVerdict, Status

pytestmark = pytest.mark.llama

LAYER = [
    "attn_norm",
    "Qcur",
    "Kcur",
    "Vcur",
    "Qcur_rope",
    "Kcur_rope",
    "k_cache",
    "v_cache",
    "kq",
    "kq_soft_max",
    "kqv_out",
    "attn_out",
    "ffn_inp",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_swiglu",
    "ffn_out",
    "l_out",
]
OUTSIDE = ["embd", "result_norm", "result_output"]


def every_site(layers: int, steps: int) -> set[Site]:
    inside = {Site(s, i, p) for s in range(steps) for i in range(layers) for p in LAYER}
    return inside | {Site(s, None, p) for s in range(steps) for p in OUTSIDE}


def assert_all_agree(model: Model, trace: Trace, sites: list[SiteVerdict]) -> None:
    assert set(trace.sites()) == every_site(model.hp.n_layer, len(trace.steps))
    assert [s for s in sites if s.status is not Status.AGREES] == []
    assert len(sites) == len(trace.sites())
    assert max(s.local_error or 0 for s in sites) <= 1e-6


@pytest.mark.smollm2
@pytest.mark.parametrize("threads", [1, 2])
def test_smollm2_agrees_at_every_site_of_every_step(tmp_path: Path, threads: int) -> None:
    with LlamaCpp(SMOLLM2) as llama:
        tokens = llama.tokenize("What is the capital of France?")
    trace, changed = recorded_by_llama_cpp(SMOLLM2, tmp_path / "trace", tokens, decode=4, threads=threads)
    model = open_model(SMOLLM2)
    assert changed == 0
    assert_all_agree(model, trace, replayed(model, trace, GGML_CPU))


@pytest.mark.smollm2
@pytest.mark.parametrize("prompt", [1, 2, 33, 300])
def test_smollm2_agrees_at_any_length_of_prompt(tmp_path: Path, prompt: int) -> None:
    tokens = [(i * 7919) % 49000 + 20 for i in range(prompt)]
    trace, _ = recorded_by_llama_cpp(SMOLLM2, tmp_path / "trace", tokens, decode=1, threads=2)
    model = open_model(SMOLLM2)
    assert_all_agree(model, trace, replayed(model, trace, GGML_CPU))


SHAPES = {
    "gqa-32-4": {"n_embd": 512, "n_head": 32, "n_head_kv": 4, "head_dim": 16, "n_ff": 768},
    "mha-8-8": {"n_head": 8, "n_head_kv": 8},
    "one-kv-head": {"n_head": 8, "n_head_kv": 1},
    "odd-heads": {"n_embd": 288, "n_head": 9, "n_head_kv": 3, "head_dim": 32, "n_ff": 544},
    "head-dim-apart": {"n_head": 4, "n_head_kv": 2, "head_dim": 96},
    "tied": {"tied": True},
    "biases": {"biases": True},
    "rope-factors": {"rope_factors": True, "rope_base": 500000.0},
    "rope-linear": {"rope_scale": 0.25},
}


@pytest.mark.sweep
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", FILE_TYPES)
def test_every_shape_agrees(tmp_path: Path, shape: dict[str, int], kind: str) -> None:
    path = synthetic(tmp_path, n_layer=3, **shape)
    path = quantised(path, FILE_TYPES[kind], tmp_path / "quantised.gguf")
    trace, changed = recorded_by_llama_cpp(path, tmp_path / "trace", [1, *range(260, 290)], decode=3)
    model = open_model(path)
    assert changed == 0
    assert_all_agree(model, trace, replayed(model, trace, GGML_CPU))


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_every_quantisation_type_agrees(tmp_path: Path, kind: str) -> None:
    path = synthetic(tmp_path, n_layer=3, n_embd=512, n_head=8, n_head_kv=2, head_dim=64, n_ff=1024, rope_factors=True)
    path = quantised(path, FILE_TYPES[kind], tmp_path / "quantised.gguf")
    model = open_model(path)
    assert model.gguf.tensors["blk.1.ffn_down.weight"].type.name == kind
    trace, _ = recorded_by_llama_cpp(path, tmp_path / "trace", [1, *range(260, 290)], decode=3)
    assert_all_agree(model, trace, replayed(model, trace, GGML_CPU))


@pytest.mark.parametrize("kind", sorted(SUPPORTED - FILE_TYPES.keys()))
def test_every_type_of_few_bits_agrees(tmp_path: Path, kind: str) -> None:
    path = in_blocks_of_ggml(kind, tmp_path, n_layer=2, n_embd=512, n_head=8, n_head_kv=2, head_dim=64, n_ff=1024)
    model = open_model(path)
    trace, _ = recorded_by_llama_cpp(path, tmp_path / "trace", [1, *range(260, 290)], decode=3)
    assert_all_agree(model, trace, replayed(model, trace, GGML_CPU))


@pytest.mark.parametrize("kind", ["F16", "Q4_1"])
def test_models_that_tests_quantise_without_llama_cpp_are_its_own_to_the_bit(tmp_path: Path, kind: str) -> None:
    shape = {"n_layer": 2, "biases": True}
    theirs = open_gguf(quantised(synthetic(tmp_path, **shape), FILE_TYPES[kind], tmp_path / "theirs.gguf"))
    ours = open_gguf(in_blocks(kind, tmp_path, **shape))
    assert {name: (t.type, t.shape) for name, t in ours.tensors.items()} == {
        name: (t.type, t.shape) for name, t in theirs.tensors.items()
    }
    for name in ours.tensors:
        np.testing.assert_array_equal(ours.raw(name), theirs.raw(name), err_msg=name)


@pytest.mark.parametrize("mix", MIXED)
@pytest.mark.parametrize("tied", [True, False])
def test_every_mix_of_types_agrees(tmp_path: Path, mix: str, *, tied: bool) -> None:
    path = synthetic(tmp_path, n_layer=8, n_embd=512, n_head=8, n_head_kv=2, head_dim=64, n_ff=1024, tied=tied)
    path = quantised(path, MIXED[mix], tmp_path / "quantised.gguf", pure=False)
    trace, _ = recorded_by_llama_cpp(path, tmp_path / "trace", [1, *range(260, 290)], decode=2)
    model = open_model(path)
    assert_all_agree(model, trace, replayed(model, trace, GGML_CPU))


def test_recording_is_the_same_with_one_thread_and_two(tmp_path: Path) -> None:
    path = synthetic(tmp_path)
    one, _ = recorded_by_llama_cpp(path, tmp_path / "one", range(3, 40), decode=2, threads=1)
    two, _ = recorded_by_llama_cpp(path, tmp_path / "two", range(3, 40), decode=2, threads=2)
    for site in one.sites():
        np.testing.assert_array_equal(one[site], two[site], err_msg=str(site))


def test_caches_hold_what_a_later_step_reads(tmp_path: Path) -> None:
    path = synthetic(tmp_path)
    trace, _ = recorded_by_llama_cpp(path, tmp_path / "trace", range(3, 20), decode=2)
    first, last = (trace[Site(step, 1, "k_cache")] for step in (0, 2))
    assert first.shape == (17, 4, 32)
    assert last.shape == (19, 4, 32)
    np.testing.assert_array_equal(last[:17], first)
    np.testing.assert_array_equal(last[17:18], trace[Site(1, 1, "Kcur_rope")].astype(np.float16))
    np.testing.assert_array_equal(trace[Site(2, 1, "v_cache")][18:], trace[Site(2, 1, "Vcur")].astype(np.float16))


def test_a_failure_inside_the_hook_is_raised_and_earlier_steps_stay(tmp_path: Path) -> None:
    path = synthetic(tmp_path)

    class Full(TraceWriter):
        def step(self, *args: object) -> None:
            if (tmp_path / "trace" / "step-001.safetensors").exists():
                raise OSError(28, "No space left on device")
            super().step(*args)  # type: ignore[arg-type]

    with (
        LlamaCpp(path) as llama,
        pytest.raises(OSError, match="No space left"),
        Full(tmp_path / "trace", engine={"name": "llama.cpp", "arithmetic": "ggml-cpu"}, model={}) as writer,
    ):
        capture(llama, [1, 5, 9], writer, nodes=NODES, decode=4)
    from firstdiff.dumps import open_trace

    trace = open_trace(tmp_path / "trace")
    assert len(trace.steps) == 2
    assert not trace.complete
    model = open_model(path)
    assert_all_agree(model, trace, replayed(model, trace, GGML_CPU))


def test_a_node_that_is_named_without_its_layer_goes_by_its_weight(tmp_path: Path) -> None:
    """llama.cpp names OLMo 2's last norm of a layer ``ffn_post_norm``, whatever the layer: all but one were lost."""
    writer = MemoryWriter()
    with LlamaCpp(tiny("olmo2", tmp_path, n_layer=3)) as llama:
        capture(llama, [1, 70, 71], writer, nodes={("ffn_post_norm", "MUL"): "ffn_post_norm"})  # type: ignore[arg-type]
    assert [str(site) for site in writer.tensors] == ["ffn_post_norm-0", "ffn_post_norm-1", "ffn_post_norm-2"]
