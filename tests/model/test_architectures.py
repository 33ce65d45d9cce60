"""Every architecture, on tiny models that llama.cpp made: against llama.cpp at every site, and against transformers.

Both are other hands: llama.cpp's graph gives every intermediate, and transformers' classes run the same weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import firstdiff.torch
from builders.engines import recorded_by_llama_cpp
from builders.hugging_face import hugging_face_model
from builders.judging import judge
from builders.logits import assert_same_logits, reference, steps_of, through_its_cache
from builders.tiny_models import tiny
from firstdiff.dumps import Trace
from firstdiff.engines.llamacpp import Attention
from firstdiff.judging.layouts import HALF, PAIRS
from firstdiff.model.engine import ARCHITECTURES, open_model
from firstdiff.verdict import Status, Verdict

PROMPT = [1, *(3 + byte for byte in b"The capital of France is Paris.")]  # llama.cpp's tokens of these bytes
DECODED = [7, 301, 262, 380]

TYPES = ("F32", "F16", "Q8_0", "Q4_K_M")
ATTENTION = {
    "flash": Attention(flash=True),
    "q8_0 cache": Attention(keys="q8_0", values="f16"),
    "flash, q8_0 cache": Attention(flash=True, keys="q8_0", values="q8_0"),
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases and rope factors": ("llama", {"optional": r"rope_freqs.weight|(attn|ffn)_\w+.bias"}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, biases at the output": ("qwen2", {"tied": True, "optional": "output.bias"}),
    "qwen3": ("qwen3", {}),
    "qwen3, wide heads, own output": ("qwen3", {"tied": False, "head_dim": 96, "n_head_kv": 2}),
    "qwen3, linear scaling": ("qwen3", {"keys": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}}),
}

every_model = pytest.mark.parametrize("name", MODELS)


def made(name: str, folder: Path, file_type: str = "F32") -> Path:
    arch, options = MODELS[name]
    return tiny(arch, folder, file_type=file_type, **options)


def certified(path: Path, folder: Path, attention: Attention | None = None) -> Verdict:
    """llama.cpp judged against the reference."""
    trace, changed = recorded_by_llama_cpp(
        path, folder / "llama.cpp", PROMPT, decode=4, attention=attention or Attention(flash=False)
    )
    assert changed == 0
    return judge(open_model(path), trace)


def assert_certified(verdict: Verdict, *, floor: float = 1e-6) -> None:
    """Every site of the reference is recorded and agrees."""
    assert {s.status for s in verdict.sites} <= {Status.AGREES, Status.INHERITS}
    errors = {s.site: s.local_error for s in verdict.sites if s.local_error is not None}
    assert len(errors) == len(verdict.sites)
    assert max(errors.values()) <= floor


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_architecture_is_tried() -> None:
    assert {arch for arch, _ in MODELS.values()} == set(ARCHITECTURES)
    assert all(MODELS[arch] == (arch, {}) for arch in ARCHITECTURES)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_architecture_fits_a_page(arch: str) -> None:
    """The design asks for 45 to 90 lines."""
    assert len(inspect.getsource(ARCHITECTURES[arch]).splitlines()) <= 90


@pytest.mark.parametrize("file_type", TYPES)
@every_model
def test_llama_cpp_agrees_at_every_site(name: str, file_type: str, tmp_path: Path) -> None:
    assert_certified(certified(made(name, tmp_path, file_type), tmp_path))


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_agrees_with_other_attention(name: str, attention: str, tmp_path: Path) -> None:
    chosen = ATTENTION[attention]
    verdict = certified(made(name, tmp_path, "Q8_0"), tmp_path, chosen)
    assert {s.site for s in verdict.diverging} == set()
    missing = {s.point for s in verdict.sites if s.status is Status.NOT_RECORDED}
    assert missing == ({"kq", "kq_soft_max"} if chosen.flash else set())


@pytest.mark.parametrize("name", [n for n in MODELS if "biases at the output" not in n])  # transformers has none there
def test_the_reference_gives_transformers_logits(name: str, tmp_path: Path) -> None:
    path, steps = made(name, tmp_path), steps_of(PROMPT, DECODED)
    assert_same_logits(reference(open_model(path), steps), through_its_cache(hugging_face_model(path), steps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_as_a_candidate_has_no_diverging_site(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = made(name, tmp_path)
    trace = firstdiff.torch.record(hugging_face_model(path, dtype), PROMPT, decode=4)
    silent = Trace.from_arrays(trace.steps, {s: trace[s] for s in trace.sites()}, engine={"name": "theirs"}, model={})
    verdict = judge(open_model(path), silent)
    assert [str(s.site) for s in verdict.diverging] == []
    assert verdict.coverage["agrees"] == verdict.coverage["sites"]
    assert set(verdict.layouts.values()) == ({HALF} if name == "llama" else set())


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_half_split_model_may_be_run_with_each_pair_side_by_side(name: str, tmp_path: Path) -> None:
    """An engine that shares llama's kernels permutes Qwen's rows at loading, and is right."""
    path = made(name, tmp_path)
    model = open_model(path)
    trace, _ = recorded_by_llama_cpp(path, tmp_path / "llama.cpp", PROMPT, decode=1)
    turned = {"Qcur", "Kcur", "Qcur_normed", "Kcur_normed", "Qcur_rope", "Kcur_rope", "k_cache"}
    theirs = {
        s: np.stack(np.split(np.asarray(trace[s]), 2, axis=-1), -1).reshape(trace[s].shape)
        if s.point in turned
        else trace[s]
        for s in trace.sites()
    }
    verdict = judge(model, Trace.from_arrays(trace.steps, theirs, engine=dict(trace.engine), model={}))
    assert verdict.verdict == "agrees"
    assert verdict.layouts == dict.fromkeys(turned & {s.point for s in trace.sites()}, PAIRS)
