"""Logits of the reference in float64 and of transformers in float32, and how near they must be."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from firstdiff.dumps import Step
from firstdiff.model.arithmetic import F64, Array
from firstdiff.model.engine import Model
from firstdiff.model.probe import Probe

# What transformers calls the KV cache that a model takes and returns: newer releases warn of the older name.
CACHE = "cache" if "cache" in inspect.signature(transformers.LlamaForCausalLM.forward).parameters else "past_key_values"

# What is left is transformers' float32. Measured over all logits: 6e-7 to 1.3e-6; at the worst token: 5e-6 for
# SmolLM2, 1e-6 for synthetic models. An epsilon of 2e-5 for 1e-5 shows as 7e-4, a rope base off by 0.1 % as 4e-5.
WHOLE, TOKEN = 4e-6, 2e-5


def steps_of(prompt: Sequence[int], decoded: Sequence[int]) -> list[Step]:
    n = len(prompt)
    return [Step(tuple(prompt), tuple(range(n))), *(Step((t,), (n + i,)) for i, t in enumerate(decoded))]


def reference(model: Model, steps: Sequence[Step]) -> list[Array]:
    return list(model.forward(steps, Probe(F64)))


def through_its_cache(model: Any, steps: Sequence[Step]) -> list[Array]:
    """Return transformers' logits [T, n_vocab] of each step."""
    cache, logits = transformers.DynamicCache(config=model.config), []
    with torch.inference_mode():
        for step in steps:
            out = model(torch.tensor([step.tokens]), **{CACHE: cache}, use_cache=True)
            logits.append(out.logits[0].numpy())
    return logits


def assert_same_logits(actual_steps: Sequence[Array], expected_steps: Sequence[Array]) -> None:
    assert [x.shape for x in actual_steps] == [x.shape for x in expected_steps]
    actual, expected = np.concatenate(actual_steps), np.concatenate(expected_steps).astype(np.float64)
    difference = actual - expected
    tokens = np.linalg.norm(difference, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert np.linalg.norm(difference) / np.linalg.norm(expected) < WHOLE
    assert tokens.max() < TOKEN
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))
