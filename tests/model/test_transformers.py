"""The reference against a second engine: transformers, running the same weights in float32 on the CPU.

They share no code, and follow different conventions: transformers rotates plain Q and K by halves, the
reference permuted ones in interleaved pairs. Agreement to rounding leaves no room for an error of the reference.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.hugging_face import hugging_face_model
from builders.logits import assert_same_logits, reference, steps_of, through_its_cache
from builders.models import synthetic

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from firstdiff.model import rope
from firstdiff.model.engine import open_model
from firstdiff.model.synthetic import Llama

# SmolLM2's tokens of "The capital of France is Paris, and the capital of Italy is".
PROMPT = [504, 3575, 282, 4649, 314, 7042, 28, 284, 260, 3575, 282, 7158, 314]
DECODED = 4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    torch.use_deterministic_algorithms(mode=False)
    torch.set_num_threads(threads)


# SmolLM2-135M, quantised, through transformers' own GGUF loader.


@pytest.fixture(scope="module")
def loaded(smollm2: Path) -> Any:
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, local_files_only=True).eval()


def test_a_real_models_logits_are_those_of_transformers_at_every_token(smollm2: Path, loaded: Any) -> None:
    steps = steps_of(PROMPT, [])
    assert_same_logits(reference(open_model(smollm2), steps), through_its_cache(loaded, steps))


def test_a_real_model_decodes_greedily_as_transformers_does(smollm2: Path, loaded: Any) -> None:
    with torch.inference_mode():
        prompt = torch.tensor([PROMPT])
        tokens = loaded.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=DECODED + 1, do_sample=False
        )
    decoded = tokens[0, len(PROMPT) :].tolist()
    steps = steps_of(PROMPT, decoded[:-1])

    logits = reference(open_model(smollm2), steps)

    assert [int(x[-1].argmax()) for x in logits] == decoded
    assert_same_logits(logits, through_its_cache(loaded, steps))


# Synthetic models: shapes that SmolLM2 has not.

TOKENS = [1, 60, 270, 300, 33, 383, 260, 261, 60, 0, 299, 150]

SHAPES = {
    "grouped heads": Llama(),
    "one KV head a head": Llama(n_head_kv=8),
    "one KV head for all": Llama(n_head_kv=1),
    "heads wider than the embedding": Llama(head_dim=48),
    "heads narrower than the embedding": Llama(head_dim=16),
    "biases": Llama(biases=True),
    "tied output": Llama(tied=True),
    "float16 weights": Llama(dtype=np.float16),
    "another rope base": Llama(rope_base=500.0),
    "linear rope scaling": Llama(rope_scale=0.25),
    "rope factors": Llama(rope_factors=True),
    "all at once": Llama(
        n_head_kv=2, head_dim=48, biases=True, rope_base=500.0, rope_scale=0.25, rope_factors=True, seed=1
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_synthetic_models_logits_are_those_of_transformers(shape: Llama, tmp_path: Path) -> None:
    path = synthetic(tmp_path / "model.gguf", shape)
    steps = steps_of(TOKENS, [7, 301, 262, 380])

    assert_same_logits(reference(open_model(path), steps), through_its_cache(hugging_face_model(path), steps))


def test_llama_3s_rope_parameters_turn_by_the_factors_that_conversion_makes_of_them() -> None:
    base, dim, factor, low, high, context = 500000.0, 64, 32.0, 1.0, 4.0, 8192
    parameters = {
        "rope_type": "llama3",
        "rope_theta": base,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
    config = transformers.LlamaConfig(head_dim=dim, max_position_embeddings=16 * context, rope_parameters=parameters)
    theirs = LlamaRotaryEmbedding(config).inv_freq.numpy()

    # llama.cpp's conversion, conversion/llama.py: 1 for short waves, `factor` for long ones, a ramp between.
    turns = context * rope.frequencies(dim, base=base) / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    factors = np.float32(1 / ((1 - smooth) / factor + smooth))

    assert factors.min() == 1
    assert factors.max() == factor
    assert np.any((factors > 1) & (factors < factor))
    mine = rope.angles([1], dim, base=base, factors=factors)[0]
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)  # theirs are float32: measured 2e-7
