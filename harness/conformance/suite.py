"""The tests: for each a tiny model, the prompts that it is run on, and what it isolates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from firstdiff.conformance.blocks import has_half_scales, matrix
from firstdiff.model.gguf_writing import Tensor, write_gguf
from firstdiff.model.quants import SUPPORTED
from firstdiff.model.synthetic import BRANCHES, Llama, llama_metadata, llama_tensors

Level = Literal["core", "full"]

PLAIN_NAME = "plain"

COMMON = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
"""Types that most files have."""

PLAIN = Llama(n_layer=1, n_embd=256, n_head=8, n_head_kv=4, head_dim=32, n_ff=512, n_vocab=384, n_ctx=512)
PROMPT = (300, 45, 301, 17, 260, 303, 99, 46, 317, 258, 72, 311)
LONG = tuple(3 + (37 * i) % 380 for i in range(100))


@dataclass(frozen=True, slots=True)
class Test:
    """One thing that an engine must get right.

    Parameters
    ----------
    name
        Such as ``type Q4_K``.
    isolates
        What is wrong with an engine that fails this test, and passes the plain one.
    shape, arch
        The model, and its architecture: ``llama``, ``qwen2`` or ``qwen3``.
    kind, tiny
        The type of its matrices, and whether their scales are subnormal.
    tokens
        What it is run on.
    metadata
        Values that are others than usual.
    order
        The order of the tensors in the file: ``usual`` or ``reversed``.
    parts
        Files that the model is split into.
    level
        Whether it is in the core of the suite.
    """

    name: str
    isolates: str
    shape: Llama = PLAIN
    arch: str = "llama"
    kind: str = "F32"
    tiny: bool = False
    tokens: tuple[int, ...] = PROMPT
    metadata: Mapping[str, object] = field(default_factory=dict)
    order: Literal["usual", "reversed"] = "usual"
    parts: int = 1
    level: Level = "core"

    @property
    def changes(self) -> bool:
        """Whether the model is another one than the plain one."""
        return self.name != PLAIN_NAME

    def write(self, folder: Path) -> Path:
        """Write the model, and return its file, or the first of its parts.

        Raises
        ------
        OSError
            Where that cannot be.
        """
        tensors = dict(self._tensors())
        if self.order == "reversed":
            tensors = dict(reversed(tensors.items()))
        own = {key.replace("llama", self.arch): value for key, value in llama_metadata(self.shape).items()}
        metadata = own | {"general.architecture": self.arch, "general.name": self.name} | dict(self.metadata)
        if self.parts == 1:
            return write_gguf(folder / "model.gguf", metadata, tensors)
        paths = []
        for number in range(self.parts):
            split: dict[str, object] = {
                "split.no": np.uint16(number),
                "split.count": np.uint16(self.parts),
                "split.tensors.count": np.int32(len(tensors)),
            }
            some = dict(islice(tensors.items(), number, None, self.parts))
            path = folder / f"model-{number + 1:05}-of-{self.parts:05}.gguf"
            paths.append(write_gguf(path, (metadata if not number else {}) | split, some))
        return paths[0]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        rng, dim = np.random.default_rng(1), self.shape.head_dim
        needs = self.arch == "qwen2"  # biases of Q, K and V, which are zeros where they are not what is tested
        for name, values in llama_tensors(replace(self.shape, biases=True) if needs else self.shape):
            x = values if self.shape.biases or not name.endswith(".bias") else 0 * values
            if name.endswith("attn_norm.weight") and self.arch == "qwen3":
                for of in ("q", "k"):
                    weight = (1 + 0.2 * rng.standard_normal(dim)).astype(np.float32)
                    yield name.replace("attn_norm", f"attn_{of}_norm"), Tensor.of(weight)
            if self.arch == "qwen2" and name.endswith(".bias") and not name.endswith(("q.bias", "k.bias", "v.bias")):
                continue
            if x.ndim == 1 or self.kind == "F32":
                yield name, Tensor.of(np.asarray(x, np.float32))
            else:
                branch = any(of in name for of in BRANCHES)
                size = 1.0 if name == "token_embd.weight" else (0.5 if branch else 1.0) * x.shape[1] ** -0.5
                yield name, matrix(rng, self.kind, (x.shape[0], x.shape[1]), size, tiny=self.tiny)


def suite(level: Level) -> list[Test]:
    """The tests of a level; the first is the plain model, by which an engine's arithmetic is found."""
    tests = [test for make in _PARTS for test in make()]
    return [test for test in tests if level == "full" or test.level == "core"]


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


_PARTS: tuple[Callable[[], Iterator[Test]], ...] = (_plain, _types, _rope, _attention, _norms, _ends, _files)
