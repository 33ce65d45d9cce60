"""Arithmetics: how an engine rounds, group by group: products, attention, cache, and what it stores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.model.errors import ModelError
from firstdiff.model.flash import padded
from firstdiff.model.holding import ELEMENTS, holding
from firstdiff.model.rounding import QUANTISED, round_to, round_turned, turned

Array = npt.NDArray[np.floating]

GGML = "ggml-cpu"

_DOT = {None: None, "f16": "f16", "bf16": "bf16"} | dict.fromkeys(QUANTISED, "q8_0")
"""What ggml's CPU backend rounds the other operand to, by the type of a cache (``vec_dot_type``)."""

TILE = 64
"""Queries from which ggml's flash attention works on tiles in float32 (``GGML_FA_TILE_Q``)."""


SPLIT = 512
"""Cached positions from which threads share the keys of one query."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How an engine rounds, group by group.

    Parameters
    ----------
    name
        As written in traces and verdicts: ``f64``, ``f32``, ``ggml-cpu``; see :func:`arithmetic_named`.
    dtype
        What values are computed and kept in.
    products
        What both operands of a product with a weight are rounded to: ``tf32``, ``f16``, ``bf16``. ``ggml-cpu``: the
        activations, as ggml's CPU backend does for the type of the weight (``type_traits_cpu[].vec_dot_type``); rope
        angles are then accumulated as ``ggml_rope_cache_init`` does. ``f16-sums``: to f16, and the sum is kept in f16.
    attention
        The same for the two products of attention; ``ggml-cpu``: queries and probabilities, by the type of the cache.
    keys, values
        What enters the KV cache is rounded to: ``f16``, ``bf16``, ``q8_0``, ``q4_0``. Quantised ones are turned first
        as llama.cpp does.
    flash
        Threads of ggml's flash attention on the CPU; 0 for plain attention.
    matrices, norms, output, embedding
        What the engine holds these weights in, converted once when the file is loaded: see
        :mod:`firstdiff.model.holding`; `output` is the matrix that makes logits. Biases are held as norms are.
    weights_and_results
        What weights and the result of every operation are rounded to: ``f16``, ``bf16``; None keeps them.
    floor
        The local error that a correct engine of this arithmetic stays below at one operation. Tests hold llama.cpp to
        the 1e-6 of ``ggml-cpu`` at every site of SmolLM2 and of synthetic models in every quantisation type, where
        products come closest, at some 4e-7.
    """

    name: str = field(compare=False)
    dtype: type[np.floating]
    products: str | None = None
    attention: str | None = None
    keys: str | None = None
    values: str | None = None
    flash: int = 0
    matrices: str | None = None
    norms: str | None = None
    output: str | None = None
    embedding: str | None = None
    weights_and_results: str | None = None
    floor: float = 1e-6

    @property
    def ggml_products(self) -> bool:
        """Whether activations are rounded as ggml's CPU backend does."""
        return self.products == GGML

    @property
    def exact(self) -> Arithmetic:
        """The same roundings with sums in float64."""
        return replace(self, dtype=np.float64)

    @property
    def holds_as_the_file(self) -> bool:
        """Whether all weights have the file's own numbers."""
        return all(getattr(self, part) is None for part in HELD)

    @property
    def biases(self) -> str | None:
        """What biases are held in."""
        return self.norms

    def keep(self, x: Array) -> Array:
        """A weight or a result as this arithmetic stores it."""
        return x if self.weights_and_results is None else self.widen(round_to(x, self.weights_and_results))

    def widen(self, x: Array) -> Array:
        """`x` in the dtype of this arithmetic; no copy where it already is."""
        return np.asarray(x, self.dtype)

    def operand(self, x: Array) -> Array:
        """`x` as an operand of a product with a weight; ggml's own way depends on the weight and is not here."""
        kind = {GGML: None, "f16-sums": "f16"}.get(self.products or "", self.products)
        return self.widen(round_to(self.widen(x), kind))

    def tiled(self, queries: int) -> bool:
        """Whether ggml's flash attention works on tiles, in float32 throughout."""
        return self.flash > 0 and self.keys == self.values == "f16" and queries >= TILE

    def attends_in_f16(self, queries: int) -> bool:
        """Whether ggml's flash attention adds up values in f16."""
        return self.flash > 0 and self.values == "f16" and not self.tiled(queries)

    def chunks(self, queries: int, keys: int) -> int:
        """Among how many threads ggml's flash attention divides the keys of one query."""
        return self.flash if queries == 1 and padded(keys) >= SPLIT and self.keys == "f16" else 1

    def query(self, q: Array) -> Array:
        """Queries [T, H, D] as an operand of their product with keys."""
        if self.attention != GGML:
            return self.widen(round_to(self.widen(q), self.attention))
        kind = _DOT[self.keys]
        if kind is None or self.tiled(len(q)):
            return self.widen(q)
        return self.widen(round_turned(np.asarray(q, np.float32), kind, turned(self.keys, q.shape[-1])))

    def probabilities(self, p: Array) -> Array:
        """Attention probabilities [H, T, S] as an operand of their product with values."""
        kind = self.attention
        if kind == GGML:
            kind = None if self.flash or self.values in QUANTISED else _DOT[self.values]
        return self.widen(round_to(self.widen(p), kind))

    def cached(self, x: Array) -> Array:
        """Keys or values as an operand: ggml takes them as the cache holds them."""
        return self.widen(x if self.attention == GGML else round_to(self.widen(x), self.attention))

    def enter(self, x: Array, *, values: bool) -> Array:
        """Keys or values [T, H_kv, D] as they enter the cache."""
        kind = self.values if values else self.keys
        if kind is None:
            return self.widen(x)
        return self.widen(round_turned(self.widen(x), kind, turned(kind, x.shape[-1], values=values)))


F64 = Arithmetic("f64", np.float64)
F32 = Arithmetic("f32", np.float32)
GGML_CPU = Arithmetic(GGML, np.float32, products=GGML, attention=GGML, keys="f16", values="f16")

# A store rounds by up to half a unit in the last place, 2 ** -9 or 2 ** -12, and an operation stores several times.
BF16 = Arithmetic("bf16", np.float32, weights_and_results="bf16", floor=1e-2)
F16 = Arithmetic("f16", np.float32, weights_and_results="f16", floor=1.25e-3)

# Products on tensor cores: operands rounded, sums in float32.
TF32 = Arithmetic("tf32", np.float32, products="tf32", attention="tf32")
TF32_CUT = Arithmetic("tf32-truncated", np.float32, products="tf32-truncated", attention="tf32-truncated")
F16_OPERANDS = Arithmetic("f16-operands", np.float32, products="f16", attention="f16")
BF16_OPERANDS = Arithmetic("bf16-operands", np.float32, products="bf16", attention="bf16")

ARITHMETICS = {a.name: a for a in (F64, F32, GGML_CPU, BF16, F16, TF32, TF32_CUT, F16_OPERANDS, BF16_OPERANDS)}

STORED = {"f16": F16.floor, "bf16": BF16.floor}

PARTS = {
    "products": (GGML, "tf32", "tf32-truncated", "f16", "bf16", "f16-sums"),
    "attention": (GGML, "tf32", "tf32-truncated", "f16", "bf16"),
    "keys": ("f16", "bf16", "q8_0", "q4_0", "q8_0-plain", "q4_0-plain"),
    "values": ("f16", "bf16", "q8_0", "q4_0", "q8_0-plain", "q4_0-plain"),
    "norms": ELEMENTS,
    "stored": ("f16", "bf16"),
}
"""What can be set apart from the rest, and to what; what matrices are held in is more, see :func:`_holds`."""

HELD = ("matrices", "norms", "output", "embedding")
"""What weights can be held in apart from each other."""


def arithmetic_named(name: str) -> Arithmetic:
    """The arithmetic of a name: ``ggml-cpu``, or one with parts changed: ``ggml-cpu+flash+kv=q8_0``.

    Raises
    ------
    ModelError
        Where it is none.
    """
    base, *parts = name.split("+")
    if base not in ARITHMETICS:
        raise ModelError(f"arithmetic {name!r:.60}: there is none of that name (there are {', '.join(ARITHMETICS)})")
    changes: dict[str, Any] = {"name": name}
    for part in parts:
        changes |= _changes(part)
    return replace(ARITHMETICS[base], **changes)


def _changes(part: str) -> dict[str, Any]:
    """What a part of a name changes."""
    key, _, value = part.partition("=")
    if key == "flash" and (not value or value.isdecimal()):
        return {"flash": int(value or 1)}
    if key in ("held", "matrices", "output", "embedding"):
        return _holds(key, value)
    keys = ("keys", "values") if key == "kv" else (key,)
    if not all(value == "f32" or value in PARTS.get(k, ()) for k in keys) or not set(keys) <= set(PARTS):
        raise ModelError(f"arithmetic: {part!r:.40} is no part of one")
    kind = None if value == "f32" else value
    if key == "stored":
        return {"weights_and_results": kind, "floor": STORED.get(value, F32.floor)}
    return dict.fromkeys(keys, kind)


def _holds(key: str, value: str) -> dict[str, Any]:
    """What ``held=f16`` changes, or a part of it. Codes hold matrices only: a norm's weights have none."""
    if value == "f32":
        return dict.fromkeys(HELD if key == "held" else (key,))
    holding(value)
    keys = (key,) if key != "held" else HELD if value in ELEMENTS else HELD[:1]
    return dict.fromkeys(keys, value)


def ggml_cpu(*, flash: int = 0, keys: str = "f16", values: str = "f16") -> Arithmetic:
    """The arithmetic of ggml's CPU backend; `flash` is the number of threads of its flash attention, 0 for none."""
    parts = ["flash" if flash == 1 else f"flash={flash}"] if flash else []
    if keys == values:
        parts += [f"kv={keys}"] if keys != "f16" else []
    else:
        parts += [f"{part}={kind}" for part, kind in (("keys", keys), ("values", values)) if kind != "f16"]
    return arithmetic_named("+".join([GGML, *parts]))
