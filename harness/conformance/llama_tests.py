"""The tests whose models are llamas, or nearly: types, rotation, attention, norms, both ends, and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from firstdiff.conformance.blocks import has_half_scales
from firstdiff.conformance.definition import LONG, PLAIN, PLAIN_NAME, PROMPT, Level, Test
from firstdiff.model.quants import SUPPORTED

COMMON = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
"""Types that most files have."""

FARTHEST: Mapping[int, Level] = {64: "full", 512: "core"}
"""What positions are multiplied by; a power of two, so that nothing is rounded. Engines round an angle of 50,688 to
float32 in ways of their own: as ggml does, position by frequency, frequency by scale first, by exp, or by exp2. These
are up to 1.3e-3 radians apart, and change logits by 3.4e-5 at most, where the floor is 7.8e-5. At 1,024 they
change them by 6.7e-5."""


def _shapes(name: str, isolates: str, level: Level = "core", **shape: object) -> Test:
    return Test(name, isolates, shape=replace(PLAIN, **shape), level=level)  # type: ignore[arg-type]


def _plain() -> Iterator[Test]:
    yield Test(PLAIN_NAME, "anything: a llama of one layer in float32, which all other tests change in one thing")
    yield _shapes("two layers", "what a layer hands to the next", n_layer=2)


def _types() -> Iterator[Test]:
    for kind in sorted(SUPPORTED - {"F32"}, key=lambda kind: (kind not in COMMON, kind)):
        level: Level = "core" if kind in COMMON else "full"
        yield Test(f"type {kind}", f"decoding {kind}: all codes and scales, at random", kind=kind, level=level)
    for kind in sorted(SUPPORTED - {"F32"}):
        if has_half_scales(kind):
            level = "core" if kind in ("Q8_0", "Q4_0") else "full"
            says = f"float16 scales of {kind} below 2 ** -14"
            yield Test(f"subnormal scales of {kind}", says, kind=kind, tiny=True, level=level)


def _rope() -> Iterator[Test]:
    yield _shapes("rope base", "a rope base of 1,000,000: llama.rope.freq_base", rope_base=1e6)
    yield _shapes("rope scaling", "linear scaling of positions: llama.rope.scaling.factor", rope_scale=0.25)
    yield _shapes("rope factors", "a factor for each frequency: rope_freqs.weight", rope_factors=True)
    yield Test("rope halves", "pairs (i, i + head_dim / 2), as architectures but llama have them", arch="qwen2")
    yield Test(
        "yarn scaling",
        "YaRN over 100 tokens, of a model that was trained on 64: llama.rope.scaling.type",
        tokens=LONG,
        metadata={
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": np.uint32(64),
        },
    )
    for times, level in FARTHEST.items():
        yield Test(
            f"angles as of position {99 * times:,}",
            f"sines and cosines of large angles: llama.rope.scaling.factor is 1 / {times}, so that position 99 turns "
            f"as position {99 * times:,} would",
            shape=replace(PLAIN, rope_scale=float(times)),
            tokens=LONG,
            level=level,
        )
    yield Test("positions to 99", "angles of positions up to 99", tokens=LONG)


def _attention() -> Iterator[Test]:
    yield _shapes("each head its own keys", "as many KV heads as query heads", n_head_kv=8)
    yield _shapes("one head of keys", "all query heads share one KV head", n_head_kv=1)
    yield _shapes("odd heads", "3 query heads, each with its own KV head", n_head=3, n_head_kv=3)
    yield _shapes("wide heads", "heads of 64 dimensions, which are not n_embd / n_head", head_dim=64)
    yield _shapes("narrow heads", "heads of 16 dimensions, which are not n_embd / n_head", head_dim=16)
    yield Test("one token", "a prompt of one token", tokens=PROMPT[:1])
    yield Test("two tokens", "a prompt of two tokens", tokens=PROMPT[:2])
    yield Test("33 tokens", "a prompt one longer than a kernel's 32", tokens=LONG[:33])
    yield Test(
        "one token again and again", "equal keys: every query sees all of those before it alike", tokens=(99,) * 9
    )


def _norms() -> Iterator[Test]:
    key = "llama.attention.layer_norm_rms_epsilon"
    yield Test("epsilon", "an epsilon of 0.01, inside the root", metadata={key: 0.01})
    yield Test("norms of Q and K", "the norm of each head of Q and K, before the rotation", arch="qwen3")
    yield _shapes("biases", "biases of all products", biases=True)
    yield Test("biases of Q, K and V", "biases of these products only", arch="qwen2", shape=replace(PLAIN, biases=True))


def _ends() -> Iterator[Test]:
    yield _shapes("tied output", "no output.weight: the embedding is the output matrix", tied=True)
    yield _shapes("odd vocabulary", "a vocabulary of 331 tokens", n_vocab=331)
    yield _shapes(
        "odd widths", "rows of 96 and 160 numbers, no multiples of 128", n_embd=96, n_ff=160, n_head=3, n_head_kv=1
    )
    yield Test(
        "control tokens",
        "ids of control tokens and bytes in a prompt: nothing is added or left out",
        tokens=(1, 2, 0, 5, 1),
    )


def _files() -> Iterator[Test]:
    yield Test(
        "alignment", "tensors aligned to 256 bytes: general.alignment", metadata={"general.alignment": np.uint32(256)}
    )
    yield Test("order of tensors", "tensors in another order in the file: they go by name", order="reversed")
    yield Test("split files", "a model of two files: the engine is given the first one", parts=2)
    yield Test(
        "wide integers",
        "hyperparameters of 64 bits, which llama.cpp refuses",
        metadata={"llama.block_count": np.uint64(1), "llama.context_length": np.uint64(512)},
        level="full",
    )
    yield Test(
        "unknown keys", "metadata that nobody reads", metadata={"somebody.list": ["a", "b"], "somebody.flag": True}
    )


def llama_tests() -> Iterator[Test]:
    """The tests whose models are llamas, or nearly; the first is the plain one."""
    for make in (_plain, _types, _rope, _attention, _norms, _ends, _files):
        yield from make()
