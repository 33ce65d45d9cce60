"""One test: a tiny model, the prompt that it is run on, and what it isolates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from firstdiff.conformance.blocks import matrix
from firstdiff.conformance.families import Family
from firstdiff.model.gguf_writing import Tensor, write_gguf
from firstdiff.model.synthetic import BRANCHES, Llama, llama_metadata, llama_tensors

Level = Literal["core", "full"]

PLAIN_NAME = "plain"

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
    family
        The model, where it is one of another architecture: it takes the place of both.
    kind, tiny
        The type of its matrices, and whether their scales are subnormal.
    tokens, at_a_time
        What it is run on, and how many of these tokens at a time; all at once where that is empty.
    metadata
        Values that are others than usual.
    order
        The order of the tensors in the file: ``usual`` or ``reversed``.
    parts
        Files that the model is split into.
    level
        Whether it is in the core of the suite.
    base
        The test whose model this one changes in one thing; the plain test is its own.
    """

    name: str
    isolates: str
    shape: Llama = PLAIN
    arch: str = "llama"
    family: Family | None = None
    kind: str = "F32"
    tiny: bool = False
    tokens: tuple[int, ...] = PROMPT
    metadata: Mapping[str, object] = field(default_factory=dict)
    order: Literal["usual", "reversed"] = "usual"
    parts: int = 1
    level: Level = "core"
    base: str = PLAIN_NAME
    at_a_time: tuple[int, ...] = ()

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
        metadata = self._keys() | dict(self.metadata)
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

    def _keys(self) -> dict[str, object]:
        if self.family is not None:
            return self.family.metadata()
        own = {key.replace("llama", self.arch): value for key, value in llama_metadata(self.shape).items()}
        return own | {"general.architecture": self.arch, "general.name": self.name}

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return self._of_llama() if self.family is None else self.family.tensors()

    def _of_llama(self) -> Iterator[tuple[str, Tensor]]:
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
