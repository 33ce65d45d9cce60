"""Which dumps the bench of trust judges: every pair of values of two dimensions, and random draws with fixed seeds."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from functools import cache
from itertools import combinations, product
from pathlib import Path
from types import MappingProxyType

sys.path.append(str(Path(__file__).parents[1]))  # for builders, here and in what imports this

from builders.held_weights import HELD
from builders.right_engines import COMPUTE, GGML

Recipe = Mapping[str, str]
"""The values of all dimensions: how one dump is made."""

DIMENSIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "model": ("llama Q4_K_M", "llama Q8_0", "llama F32", "qwen2 Q4_K_M", "qwen3 Q8_0"),
        "engine": ("reference", "transformers", "C", "llama.cpp"),
        "held": ("f32", *HELD),
        "compute": (*COMPUTE, *GGML),
        "stored": ("f32", "f16", "bf16"),
        "order": ("GGUF", "Hugging Face"),
        "axes": ("plain", "batch of 1", "heads first", "reversed"),
        "fused": ("apart", "blocks", "by KV head"),
        "scores": ("raw", "scaled", "-inf", "-1e9", "least", "scaled, -inf"),
        "reduction": (
            "all",
            "last row",
            "last row, whole caches",
            "layer outputs",
            "every third layer",
            "no caches",
            "no caches, no scores",
            "no step 0",
            "no step 0, no caches",
            "padded rows",
            "padded rows, stale",
        ),
        "prompt": ("1", "7", "40", "24 + 16"),
        "decode": ("0", "3"),
        "stated": ("nothing", "compute"),
    }
)

STATED = ("f32", "tf32", "f16", "bf16")
"""What a manifest can say of what is computed in."""


def allowed(recipe: Recipe) -> bool:
    """Whether there is such a dump; dimensions that are not given may be anything."""
    return not any(forbids(recipe) for forbids in _FORBIDDEN)


def _is(recipe: Recipe, name: str, *values: str) -> bool:
    return recipe.get(name) in values


_FORBIDDEN = (
    lambda r: _is(r, "engine", "llama.cpp") and _is(r, "compute", *COMPUTE),
    lambda r: _is(r, "engine", "reference", "transformers", "C") and _is(r, "compute", *GGML),
    lambda r: _is(r, "engine", "C") and _is(r, "compute", *(c for c in COMPUTE if c != "f32")),
    lambda r: _is(r, "engine", "C") and _is(r, "prompt", "24 + 16"),  # it decodes, and takes no second chunk
    lambda r: _is(r, "engine", "C") and _is(r, "model", "qwen2 Q4_K_M", "qwen3 Q8_0"),
    lambda r: _is(r, "order", "Hugging Face") and _is(r, "model", "qwen2 Q4_K_M", "qwen3 Q8_0"),  # it is GGUF's
    lambda r: (
        _is(r, "reduction", "no step 0", "no step 0, no caches")
        and _is(r, "decode", "0")
        and _is(r, "prompt", "1", "7", "40")
    ),
    lambda r: _is(r, "stated", "compute") and "compute" in r and r["compute"] not in STATED,
)


@cache
def covering() -> tuple[Recipe, ...]:
    """Dumps in which every pair of values of two dimensions occurs that can; greedily, few of them."""
    left = {
        frozenset(((a, x), (b, y)))
        for a, b in combinations(DIMENSIONS, 2)
        for x, y in product(DIMENSIONS[a], DIMENSIONS[b])
        if _completed({a: x, b: y}, random.Random(0)) is not None
    }
    rng, made = random.Random(0), []
    for pair in sorted(left, key=sorted):
        if pair in left:
            drawn = [r for _ in range(12) if (r := _completed(dict(pair), rng)) is not None]
            best = max(drawn, key=lambda r: len(left & _pairs(r)))
            left -= _pairs(best)
            made.append(best)
    return tuple(made)


def _pairs(recipe: Recipe) -> set[frozenset[tuple[str, str]]]:
    return {frozenset(pair) for pair in combinations(recipe.items(), 2)}


def _completed(given: Recipe, rng: random.Random) -> Recipe | None:
    """A dump that has the given values, the others drawn; None where there is none (not found in many tries)."""
    if not allowed(given):
        return None
    for _ in range(60):
        recipe = dict(given)
        for name in rng.sample(list(DIMENSIONS), len(DIMENSIONS)):
            if name not in recipe:
                values = [v for v in DIMENSIONS[name] if allowed({**recipe, name: v})]
                if not values:
                    break
                recipe[name] = rng.choice(values)
        else:
            return {name: recipe[name] for name in DIMENSIONS}
    return None


def drawn(seed: int, given: Recipe = MappingProxyType({})) -> Recipe:
    """A random dump that has the given values."""
    recipe = _completed(given, random.Random(f"{seed} {sorted(given.items())}"))
    assert recipe is not None, f"there is no dump with {given}"
    return recipe
