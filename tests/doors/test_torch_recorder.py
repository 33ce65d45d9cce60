"""Recording from PyTorch: every family's points, any other module, what is refused, and nothing stays behind."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import torch
import transformers
from gguf.constants import MODEL_ARCH_NAMES

from builders.recordings import ATTENTION, FEED_FORWARD, assert_logits_are_unchanged, points
from firstdiff.dumps import Site, TraceError, open_trace
from firstdiff.errors import UsageError
from firstdiff.model.architecture_names import OTHER_NAMES
from firstdiff.torch import record

pytestmark = pytest.mark.usefixtures("one_thread")

NORMED = ["Qcur_normed", "Kcur_normed"]


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# Small random models of each family

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMALL)),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig(**SMALL)),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**SMALL)),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**SMALL)),
    "gemma3": (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(**SMALL, sliding_window=8)),
}
GEMMA = {"attn_post_norm", "ffn_post_norm", "ffn_geglu"}
HAS = {
    **{family: {*ATTENTION, *FEED_FORWARD} for family in ("llama", "mistral", "qwen2")},
    "qwen3": {*ATTENTION, *FEED_FORWARD, *NORMED},
    "gemma3": {*ATTENTION, *FEED_FORWARD, *NORMED, *GEMMA} - {"ffn_swiglu"},
}


def small(family: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    kind, config = FAMILIES[family]
    model = kind(config).eval()
    for name, weight in model.named_parameters():  # 0 and 1 as they are made would hide what is left out
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(weight, mean=0.5, std=0.2)
    return model.to(dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_records_the_points_that_it_has(family: str) -> None:
    model = small(family)

    trace = record(model, [5, 90, 17, 33, 2], decode=2)

    for step, (t, s) in enumerate([(5, 5), (1, 6), (1, 7)]):
        assert points(trace, None, step) == ["embd", "result_norm", "result_output"]
        for layer in range(2):
            assert set(points(trace, layer, step)) == HAS[family]
            shapes = {p: trace.shape(Site(step, layer, p)) for p in HAS[family]}
            assert {shapes[p] for p in HAS[family] & {"Qcur", "Qcur_normed", "Qcur_rope"}} == {(t, 4, 16)}
            assert {shapes[p] for p in HAS[family] & {"Kcur", "Vcur", "Kcur_normed", "Kcur_rope"}} == {(t, 2, 16)}
            assert {shapes["k_cache"], shapes["v_cache"]} == {(s, 2, 16)}
            assert {shapes["kq"], shapes["kq_soft_max"]} == {(4, t, s)}
            assert shapes["kqv_out"] == (t, 64)
            np.testing.assert_allclose(trace[Site(step, layer, "kq_soft_max")].sum(-1), 1, atol=1e-6)
    assert_logits_are_unchanged(model, trace)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_architecture_is_stated_as_gguf_files_name_it(family: str) -> None:
    stated = record(small(family), [5]).model["architecture"]
    assert stated == ("llama" if family == "mistral" else family)
    assert stated in MODEL_ARCH_NAMES.values()


def test_every_other_name_of_an_architecture_is_one_that_transformers_or_ollama_uses_and_llama_cpp_does_not() -> None:
    types, ollama = set(transformers.CONFIG_MAPPING), {"glm4moelite", "gptoss", "qwen25vl"}
    assert set(OTHER_NAMES) <= types | ollama
    assert set(OTHER_NAMES.values()) <= set(MODEL_ARCH_NAMES.values())
    assert not set(OTHER_NAMES) & set(MODEL_ARCH_NAMES.values())


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_normed_queries_are_the_norm_of_the_queries_head_by_head(family: str) -> None:
    model = small(family)
    trace = record(model, [5, 90, 17, 33])  # as many tokens as heads: no shape tells them apart
    for new, point, norm in (("Qcur_normed", "Qcur", "q_norm"), ("Kcur_normed", "Kcur", "k_norm")):
        with torch.no_grad():
            normed = getattr(model.model.layers[1].self_attn, norm)(torch.tensor(trace[Site(0, 1, point)]))
        np.testing.assert_allclose(trace[Site(0, 1, new)], normed.numpy(), rtol=1e-6)


def test_the_residual_sums_of_gemma_are_of_the_post_norms() -> None:
    trace = record(small("gemma3"), [5, 90, 17, 33, 2])
    x = {point: trace[Site(0, 1, point)] for point in points(trace, 1)}
    np.testing.assert_array_equal(x["ffn_inp"], trace[Site(0, 0, "l_out")] + x["attn_post_norm"])
    np.testing.assert_array_equal(x["l_out"], x["ffn_inp"] + x["ffn_post_norm"])


def test_a_sliding_layers_cache_is_what_attention_reads() -> None:
    trace = record(small("gemma3"), list(range(10)), decode=1)  # the window is 8
    assert trace.shape(Site(0, 0, "k_cache")) == (10, 2, 16)
    assert trace.shape(Site(1, 0, "k_cache")) == (8, 2, 16)
    assert trace.shape(Site(1, 0, "kq")) == (4, 1, 8)
    np.testing.assert_array_equal(trace[Site(1, 0, "k_cache")][-1:], trace[Site(1, 0, "Kcur_rope")])


@pytest.mark.parametrize(
    ("dtype", "arithmetic", "kept"),
    [(torch.bfloat16, "bf16", "f32"), (torch.float16, "f16", "f16"), (torch.float64, "f64", "f64")],
)
def test_values_of_every_dtype_are_kept_exactly(dtype: torch.dtype, arithmetic: str, kept: str, tmp_path: Path) -> None:
    model = small("llama", dtype)

    trace = record(model, [5, 90, 17], decode=1, out=tmp_path / "run")

    assert trace.engine["arithmetic"] == arithmetic
    assert {trace.dtype(site) for site in trace} == {kept}
    for site in trace:
        np.testing.assert_array_equal(torch.tensor(trace[site]).to(dtype).to(torch.float64).numpy(), trace[site])
    assert_logits_are_unchanged(model, trace)


# Any other module


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.up = torch.nn.Linear(8, 8)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x + self.drop(self.up(self.norm(x))), None


class Own(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(20, 8)
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.head = torch.nn.Linear(8, 20)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x, _ = block(x)
        return self.head(x)


OWN = {"tokens": "embd", "blocks.{layer}.up": "ffn_up", "blocks.{layer}": "l_out", "": "result_output"}


def test_a_module_of_ones_own_is_recorded_by_a_table_of_names() -> None:
    model = Own()

    trace = record(model, [3, 19, 0], names=OWN)

    keys = ["embd", "ffn_up-0", "l_out-0", "ffn_up-1", "l_out-1", "result_output"]
    assert [site.key for site in trace] == keys
    assert [trace.shape(site) for site in trace] == [*[(3, 8)] * 5, (3, 20)]
    assert trace.engine == {
        "name": "torch", "version": torch.__version__, "backend": "cpu/float32", "arithmetic": "f32",
    }  # fmt: skip
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([[3, 19, 0]]))[0].numpy()
    np.testing.assert_array_equal(trace[Site(0, None, "result_output")], logits)


def test_names_take_the_place_of_a_familys_points() -> None:
    trace = record(small("llama"), [5, 90], decode=1, names={"model.layers.{layer}.mlp": "ffn_out"})
    assert [str(site) for site in trace] == ["ffn_out-0", "ffn_out-1", "ffn_out-0@1", "ffn_out-1@1"]


# What is left behind, and what is refused


def test_mode_attention_and_hooks_are_as_they_were() -> None:
    model = small("llama")
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]

    record(model, [5, 90], decode=1)

    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == "sdpa"
    assert hooks(model) == 0


def test_an_exception_leaves_the_model_as_it_was_and_the_earlier_steps_readable(tmp_path: Path) -> None:
    model = small("llama")
    model.train()

    def fail(_module: Any, inputs: Any) -> None:
        if inputs[0].shape[1] == 1:
            raise ArithmeticError("no decoding today")

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError, match="no decoding today"):
        record(model, [5, 90, 17], decode=3, out=tmp_path / "run")
    handle.remove()

    assert hooks(model) == 0
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    trace = open_trace(tmp_path / "run")
    assert not trace.complete
    assert [step.tokens for step in trace.steps] == [(5, 90, 17)]
    assert set(points(trace, 1)) == HAS["llama"]


def test_a_tokenizers_batch_of_one_is_a_prompt() -> None:
    (step,) = record(small("llama"), torch.tensor([[5, 90]])).steps
    assert step.tokens == (5, 90)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([], {}, "the prompt is empty: give at least one token"),
        ([[1, 2], [3, 4]], {}, "tokens hold a batch of 2 prompts: give the tokens of one"),
        (torch.zeros(3, 2, dtype=torch.int64), {}, "tokens hold a batch of 3 prompts: give the tokens of one"),
        ([1, 96], {}, "token 1 is 96: the model's vocabulary has 96 tokens, from 0 on"),
        ([1, -1], {}, "token 1 is -1: it must be an integer from 0 to 2,147,483,647"),
        ([1, 0.5], {}, "token 1 is 0.5: it must be an integer from 0 to 2,147,483,647"),
        ("ab", {}, "tokens must be a list of integers, not 'ab'"),
        ([1], {"decode": -1}, "decode is -1: give 0 or the number of steps to decode after the prompt"),
        (
            [1],
            {"names": {"model.h.{layer}": "l_out"}},
            "LlamaForCausalLM has no module 'model.h.{layer}': give names with paths that it has",
        ),
        (
            [1],
            {"names": {"model.norm": "x", "lm_head": "x"}},
            "x is computed twice in one step: give each module a point of its own",
        ),
        ([1], {"names": {"model.norm": "a/b"}}, "the name 'a/b' holds a control character or a path separator"),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_line(tokens: Any, options: Any, message: str) -> None:
    model = small("llama")
    with pytest.raises((UsageError, TraceError), match=re.escape(message)) as error:
        record(model, tokens, **options)
    assert "\n" not in str(error.value)
    assert hooks(model) == 0


def test_a_model_of_no_known_family_needs_names() -> None:
    with pytest.raises(UsageError, match=r"Own is no model of transformers: give names") as error:
        record(Own(), [1])
    assert "\n" not in str(error.value)


def test_a_module_without_a_cache_does_not_decode() -> None:
    with pytest.raises(UsageError, match=r"takes no 'past_key_values'.*: leave decode at 0"):
        record(Own(), [1], decode=1, names=OWN)


def test_without_pytorch_the_message_says_what_to_install() -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "try:\n    import firstdiff.torch\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "firstdiff.torch records from PyTorch, which is not installed: pip install 'firstdiff[torch]'\n"
    )
