"""Tiny models in transformers and in llama.cpp: two engines that share nothing agree on every recorded tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import firstdiff.torch
from builders.engines import recorded_by_llama_cpp
from builders.hugging_face import hugging_face_model
from builders.tiny_models import tiny
from firstdiff.dumps import Trace
from firstdiff.engines import ggml
from firstdiff.engines.llamacpp import Attention
from firstdiff.model.engine import ARCHITECTURES

TOKENS = [1, 60, 270, 300, 33, 383, 260, 261]
SEEN = {
    *("embd", "attn_norm", "Qcur", "Kcur", "Vcur", "Qcur_rope", "Kcur_rope", "k_cache", "v_cache", "kq", "kq_soft_max"),
    *("kqv_out", "ffn_inp", "ffn_norm", "ffn_gate", "ffn_up", "ffn_swiglu", "ffn_out", "l_out"),
    *("result_norm", "result_output"),
}
"""Points that llama.cpp shows of each architecture."""

# Both free-running in float32, so the errors add up over four layers. Measured: at most 1.2e-6 of a tensor.
CLOSE = 4e-6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def f32_cache(monkeypatch: pytest.MonkeyPatch) -> Attention:
    """llama.cpp's attention with nothing rounded to 16 bits, as transformers has it."""
    monkeypatch.setitem(ggml.CACHE_TYPES, "f32", "F32")
    return Attention(flash=False, keys="f32", values="f32")


def assert_same_tensors(theirs: Trace, llama: Trace, *, halves: bool) -> None:
    """Every tensor of llama.cpp's trace is in transformers'; `halves`: with Q and K in the other order."""
    assert [step.tokens for step in theirs.steps] == [step.tokens for step in llama.steps]
    assert {site.point for site in llama} >= SEEN
    for site in llama:
        x, y = theirs[site], llama[site]
        if halves and site.point in ("Qcur", "Kcur", "Qcur_rope", "Kcur_rope", "k_cache"):
            x = x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)
        if site.point == "kq":  # what the mask hides was never asked for
            x, y = (np.tril(s, s.shape[-1] - s.shape[-2]) for s in (x, y))
        assert x.shape == y.shape, site
        assert np.linalg.norm(x - y) / np.linalg.norm(y) < CLOSE, site


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases and rope factors": ("llama", {"optional": r"rope_freqs.weight|(attn|ffn)_\w+.bias"}),
    "qwen2": ("qwen2", {}),
    "qwen2 with tied output": ("qwen2", {"tied": True}),
    "qwen3": ("qwen3", {}),
    "qwen3 with odd heads and output": ("qwen3", {"tied": False, "head_dim": 96, "n_head_kv": 2}),
}


@pytest.mark.parametrize(("arch", "options"), MODELS.values(), ids=MODELS)
def test_transformers_and_llama_cpp_compute_the_same_tensors_of_a_tiny_model(
    arch: str, options: dict[str, Any], tmp_path: Path, f32_cache: Attention
) -> None:
    path = tiny(arch, tmp_path, **options)
    llama, _ = recorded_by_llama_cpp(path, tmp_path / "llama", TOKENS, decode=3, attention=f32_cache)

    theirs = firstdiff.torch.record(hugging_face_model(path), TOKENS, decode=3)

    assert_same_tensors(theirs, llama, halves=arch == "llama")


# Against the float64 model. Measured: 1.0e-3 to 1.5e-3, and 8.2e-3 to 1.2e-2.
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_model_in_16_bits_differs_by_their_rounding_and_rotates_by_exact_angles(
    arch: str, dtype: torch.dtype, most: float, tmp_path: Path
) -> None:
    path = tiny(arch, tmp_path)
    model = hugging_face_model(path, dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    with torch.inference_mode():
        x, exact = (m(torch.tensor([TOKENS])).logits.double() for m in (model, hugging_face_model(path, torch.float64)))
    assert (x - exact).norm() / exact.norm() < most
