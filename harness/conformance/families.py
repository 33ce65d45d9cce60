"""Tiny models of other architectures than llama: what their files hold, by llama.cpp's names."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import TypeVar

import numpy as np

from firstdiff.conformance.blocks import matrix
from firstdiff.model.gguf_writing import Tensor
from firstdiff.model.synthetic import BRANCHES, tokenizer

T = TypeVar("T")

Shapes = Mapping[str, tuple[int, ...]]
"""Tensors by name, with their shapes [..., out, in]."""

N, F, V, HEADS, KV, DIM = 256, 512, 384, 4, 2, 64
"""Widths of the stream, of the feed-forward network and of the vocabulary; heads, heads of keys, and their width."""

CONTEXT = 512
EXPERTS = 4


@dataclass(frozen=True, slots=True)
class Family:
    """A model of an architecture.

    Parameters
    ----------
    arch
        llama.cpp's name of the architecture.
    keys
        Its hyperparameters beside :data:`COMMON`, without the architecture before them; None leaves a key out.
    layer
        The tensors that every layer has.
    ends
        The tensors outside of layers, in front of ``token_embd.weight``'s.
    layers
        How many layers there are.
    others
        Layers that have other tensors than :attr:`layer`, by number.
    kinds
        Types of tensors other than F32, by the ends of their names.
    sizes
        Factors of the values of tensors, by the ends of their names: what is tested is to stand out.
    centres
        What is added to the values of tensors, by the ends of their names.
    seed
        What the random values depend on, beside each tensor's name. Where there are experts, it is one with which every
        expert is chosen by some token, and no choice is near a tie: the last chosen is a thirteenth of the spread of
        scores ahead of the next at least, so that rounding to bfloat16 changes no choice.
    """

    arch: str
    keys: Mapping[str, object]
    layer: Shapes
    ends: Shapes
    layers: int = 2
    others: Mapping[int, Shapes] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    centres: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def but(self, **keys: object) -> Family:
        """The same with other hyperparameters: ``rope__freq_base`` is the key ``rope.freq_base``."""
        return replace(self, keys={**self.keys, **{key.replace("__", "."): value for key, value in keys.items()}})

    def centred(self, **centres: float) -> Family:
        """The same with something added to the values of some tensors, named as for :meth:`sized`."""
        return replace(self, centres={**self.centres, **{f"{name}.weight": x for name, x in centres.items()}})

    def sized(self, **sizes: float) -> Family:
        """The same with the values of some tensors multiplied, by the last parts of their names without ``.weight``."""
        return replace(self, sizes={**self.sizes, **{f"{name}.weight": size for name, size in sizes.items()}})

    def seeded(self, seed: int) -> Family:
        """The same with other random values."""
        return replace(self, seed=seed)

    def metadata(self) -> dict[str, object]:
        """The keys of its file."""
        stated = {"block_count": self.layers, **COMMON, **self.keys}
        own = {f"{self.arch}.{key}": _typed(value) for key, value in stated.items() if value is not None}
        # llama.cpp looks for tokens of Phi-3's own in a vocabulary of whatever has that in its name
        return {"general.architecture": self.arch, "general.name": "a tiny model", **own, **tokenizer(V)}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Draw every tensor, in the order of the file."""
        shapes = {"token_embd.weight": (V, N), **self.ends}
        for number in range(self.layers):
            here = self.others.get(number, self.layer)
            shapes |= {f"blk.{number}.{name}": shape for name, shape in here.items()}
        tied = "output.weight" not in self.ends
        for name, shape in shapes.items():
            yield name, self._drawn(name, shape, tied=tied)

    def _drawn(self, name: str, shape: tuple[int, ...], *, tied: bool) -> Tensor:
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        times, kind = _of(self.sizes, name, 1.0), _of(self.kinds, name, "F32")
        size = times * _size(name, shape, tied=tied)
        if kind != "F32":
            made = matrix(rng, kind, (prod(shape[:-1]), shape[-1]), size)
            return Tensor(made.kind, shape, made.data)
        x = rng.standard_normal(shape, np.float32)
        if ("norm" in name and name.endswith(".weight")) or name.endswith("time_mix_ln.weight"):
            x = 1 + np.float32(0.2 * times) * x
        elif name.endswith("ssm_a"):  # states decay
            x = -np.exp(x / 2)
        else:
            x = np.float32(size) * x
        return Tensor.of(np.asarray(x + np.float32(_of(self.centres, name, 0.0)), np.float32))


def _of(table: Mapping[str, T], name: str, otherwise: T) -> T:
    """What a table says of a tensor, by how its name ends."""
    return next((value for end, value in table.items() if name.endswith(end)), otherwise)


def _size(name: str, shape: tuple[int, ...], *, tied: bool) -> float:
    """How large values are, so that activations stay of the order of 1 through the layers."""
    if name == "token_embd.weight":  # tied, half-way between a stream and logits of order 1
        return float(shape[-1] ** -0.25) if tied else 1.0
    if name.endswith((".bias", "sinks.weight", "ssm_d")) or len(shape) == 1 or name == "position_embd.weight":
        return 0.3
    return float((1.5 if any(of in name for of in BRANCHES) else 1.0) * shape[-1] ** -0.5)


def _typed(value: object) -> object:
    """A value as it stands in a file: whole numbers are 32 bits wide."""
    if isinstance(value, bool | str | float | np.ndarray | np.generic):
        return value
    if isinstance(value, int):
        return np.uint32(value)
    assert isinstance(value, list)
    kind = np.bool_ if isinstance(value[0], bool) else np.float32 if isinstance(value[0], float) else np.int32
    return np.array(value, kind)


COMMON: Mapping[str, object] = {
    "context_length": CONTEXT,
    "embedding_length": N,
    "feed_forward_length": F,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV,
    "rope.freq_base": 10000.0,
    "vocab_size": V,
}
RMS: Mapping[str, object] = {"attention.layer_norm_rms_epsilon": 1e-5}
MEAN: Mapping[str, object] = {"attention.layer_norm_epsilon": 1e-5}
ROPE: Mapping[str, object] = {"rope.dimension_count": DIM}
WIDE: Mapping[str, object] = {"attention.key_length": DIM, "attention.value_length": DIM}


def weights(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Tensors whose names end in ``.weight``."""
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def norms(*names: str, width: int = N) -> dict[str, tuple[int, ...]]:
    """Weights of norms."""
    return weights(**dict.fromkeys(names, (width,)))


def biased(shapes: Shapes, *but: str) -> dict[str, tuple[int, ...]]:
    """Tensors, and beside each of them a bias, but for some."""
    made: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        made[name] = shape
        of = name.removesuffix(".weight")
        if of not in but:
            made[f"{of}.bias"] = shape if len(shape) == 1 else shape[:-1]
    return made


QKV = weights(attn_q=(HEADS * DIM, N), attn_k=(KV * DIM, N), attn_v=(KV * DIM, N))
OUT = weights(attn_output=(N, HEADS * DIM))
GATED = weights(ffn_gate=(F, N), ffn_up=(F, N), ffn_down=(N, F))
PLAIN = weights(ffn_up=(F, N), ffn_down=(N, F))
PAIR = norms("attn_norm", "ffn_norm")
QK_NORMS = norms("attn_q_norm", "attn_k_norm", width=DIM)
HEAD = weights(output=(V, N))
END = norms("output_norm")


def routed(width: int = F) -> dict[str, tuple[int, ...]]:
    """A router, and experts of a width."""
    return weights(
        ffn_gate_inp=(EXPERTS, N),
        ffn_gate_exps=(EXPERTS, width, N),
        ffn_up_exps=(EXPERTS, width, N),
        ffn_down_exps=(EXPERTS, N, width),
    )


ROUTED_KEYS: Mapping[str, object] = {"expert_count": EXPERTS, "expert_used_count": 2}
