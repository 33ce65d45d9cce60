"""The builder of tiny models: they are what real files of an architecture are, and nothing in them is degenerate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from builders.tiny_models import SHAPES, tiny
from firstdiff.engines.llamacpp import LlamaCpp

TOKENS = [1, 60, 270, 300, 33, 383, 260, 261, 60, 0, 299, 150]
BLOCK = {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"}
NORMS = {"attn_q_norm", "attn_k_norm"}
EXPERTS = {"ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}
WEIGHTS = {
    "llama": BLOCK,
    "qwen2": BLOCK,
    "qwen3": BLOCK | NORMS,
    "qwen3moe": (BLOCK | NORMS | EXPERTS) - {"ffn_gate", "ffn_up", "ffn_down"},
    "gemma3": BLOCK | NORMS | {"post_attention_norm", "post_ffw_norm"},
}
BIASES = {"qwen2": {"attn_q", "attn_k", "attn_v"}}


def logits(path: Path, tokens: Sequence[int]) -> np.ndarray:
    with LlamaCpp(path) as llama, llama.context(len(tokens), len(tokens), None) as context:
        return context.decode(tokens, 0)


def parts(path: Path, kind: str) -> set[str]:
    """Modules of block 0 that have a tensor of a kind."""
    split = [tensor.name.split(".") for tensor in gguf.GGUFReader(path).tensors]
    return {part for block, number, part, last in (s for s in split if len(s) == 4) if (number, last) == ("0", kind)}


@pytest.mark.parametrize("arch", SHAPES)
@pytest.mark.parametrize("file_type", ["F32", "Q4_K_M"])
def test_a_tiny_models_logits_are_finite_of_order_1_and_differ_by_token(
    arch: str, file_type: str, tmp_path: Path
) -> None:
    x = logits(tiny(arch, tmp_path, file_type=file_type), TOKENS)
    assert np.isfinite(x).all()
    assert 0.5 < x.std() < 10
    assert len(set(x.argmax(-1).tolist())) >= len(TOKENS) // 2
    apart = np.linalg.norm(x[:, None] - x, axis=-1) / np.linalg.norm(x, axis=-1).mean()
    others = np.not_equal.outer(TOKENS, TOKENS)
    assert apart[others].min() > 0.5  # measured: 0.86 to 1.6


@pytest.mark.parametrize("arch", SHAPES)
def test_what_came_before_a_token_matters_and_so_does_its_order(arch: str, tmp_path: Path) -> None:
    path = tiny(arch, tmp_path)
    one, other, longer = (logits(path, tokens)[-1] for tokens in ([60, 270, 33], [270, 60, 33], [7, 60, 270, 33]))
    for x in (other, longer):
        assert np.linalg.norm(x - one) / np.linalg.norm(one) > 0.05  # measured: 0.14 to 0.87


@pytest.mark.parametrize("arch", SHAPES)
def test_a_tiny_model_has_the_tensors_of_real_files(arch: str, tmp_path: Path) -> None:
    path = tiny(arch, tmp_path)
    assert parts(path, "weight") == WEIGHTS[arch]
    assert parts(path, "bias") == BIASES.get(arch, set())
    ends = {tensor.name for tensor in gguf.GGUFReader(path).tensors if not tensor.name.startswith("blk.")}
    assert ends == {"token_embd.weight", "output_norm.weight"} | (set() if SHAPES[arch].tied else {"output.weight"})


def test_optional_tensors_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tiny("llama", tmp_path, optional=r"rope_freqs.weight|attn_output.bias", tied=True)
    assert parts(path, "bias") == {"attn_output"}
    names = {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    assert "rope_freqs.weight" in names
    assert "output.weight" not in names
    assert np.isfinite(logits(path, TOKENS)).all()


@pytest.mark.parametrize(
    ("file_type", "kinds"),
    [
        ("F16", {"F16"}),
        ("BF16", {"BF16"}),
        ("Q8_0", {"Q8_0"}),
        ("Q4_1", {"Q4_1"}),
        ("Q4_K", {"Q4_K"}),
        ("Q4_K_M", {"Q4_K", "Q6_K"}),
        ("Q5_K_M", {"Q5_K", "Q6_K"}),
        ("Q6_K", {"Q6_K"}),
    ],
)
def test_every_matrix_is_of_the_type_that_was_asked_for(file_type: str, kinds: set[str], tmp_path: Path) -> None:
    path = tiny("qwen3", tmp_path, file_type=file_type)
    matrices = [tensor for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1]
    assert {tensor.tensor_type.name for tensor in matrices} == kinds
    assert [file.name for file in tmp_path.iterdir()] == [f"qwen3-{file_type}.gguf"]


def test_equal_arguments_make_equal_files_and_another_seed_other_weights(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    same, again, other = (tiny("qwen2", folder, seed=seed) for folder, seed in zip(folders, (3, 3, 4), strict=True))
    assert same.read_bytes() == again.read_bytes()
    for one, two in zip(gguf.GGUFReader(same).tensors, gguf.GGUFReader(other).tensors, strict=True):
        assert one.name == two.name
        assert not np.array_equal(one.data, two.data)


def test_shapes_can_be_overridden_and_a_prompt_tokenised(tmp_path: Path) -> None:
    path = tiny("qwen3", tmp_path, n_layer=2, head_dim=96, tied=False, keys={"rope.freq_base": 5e5})
    reader = gguf.GGUFReader(path)
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}  # row length first
    assert shapes["blk.1.attn_q.weight"] == [256, 768]
    assert shapes["blk.1.attn_k_norm.weight"] == [96]
    assert shapes["output.weight"] == [256, 384]
    assert reader.fields["qwen3.rope.freq_base"].contents() == 5e5
    with LlamaCpp(path, vocabulary_only=True) as llama:
        tokens = llama.tokenize("hello world")
        assert "".join(map(llama.piece, tokens)).strip().endswith("hello world")


def test_an_architecture_that_llama_cpp_does_not_know_says_so(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"nosuch: llama.cpp makes no such model.*unknown model architecture"):
        tiny("nosuch", tmp_path)
