"""Arithmetics: how an engine rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstdiff.model.quants import round_bf16

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How an engine rounds, operation by operation.

    Parameters
    ----------
    name
        As written in traces and verdicts: ``f64``, ``f32``, ``ggml-cpu``.
    dtype
        What values are computed and kept in.
    ggml_products
        Activations are rounded before a product as ggml's CPU backend does for the type of the weight
        (``type_traits_cpu[].vec_dot_type``), and rope angles are accumulated as ``ggml_rope_cache_init`` does.
    attention
        What queries and attention probabilities are rounded to as operands of a product; None keeps them.
    cache
        What keys and values are rounded to when they enter the KV cache.
    weights_and_results
        What weights and the result of every operation are rounded to: ``f16``, ``bf16``; None keeps them.
    floor
        The local error that a correct engine of this arithmetic stays below at one operation. Tests hold llama.cpp to
        the 1e-6 of ``ggml-cpu`` at every site of SmolLM2 and of synthetic models in every quantisation type, where
        products come closest, at some 4e-7.
    """

    name: str
    dtype: type[np.floating]
    ggml_products: bool
    attention: type[np.floating] | None
    cache: type[np.floating]
    weights_and_results: str | None = None
    floor: float = 1e-6

    def keep(self, x: Array) -> Array:
        """A weight or a result as this arithmetic stores it."""
        if self.weights_and_results is None:
            return x
        if self.weights_and_results == "bf16":
            return round_bf16(np.asarray(x, np.float32))
        return self.widen(round_to(x, np.float16))

    def widen(self, x: Array) -> Array:
        """`x` in the dtype of this arithmetic; no copy where it already is."""
        return np.asarray(x, self.dtype)

    def operand(self, x: Array) -> Array:
        """`x` as an operand of an attention product: rounded to `attention`, and widened again."""
        return self.widen(round_to(x, self.attention))


def round_to(x: Array, dtype: type[np.floating] | None) -> Array:
    """`x` rounded to `dtype` (to nearest even; beyond the largest number, infinity), or as it is for None."""
    if dtype is None or x.dtype == dtype:
        return x
    with np.errstate(over="ignore"):
        return x.astype(dtype)


F64 = Arithmetic("f64", np.float64, ggml_products=False, attention=None, cache=np.float64)
F32 = Arithmetic("f32", np.float32, ggml_products=False, attention=None, cache=np.float32)
GGML_CPU = Arithmetic("ggml-cpu", np.float32, ggml_products=True, attention=np.float16, cache=np.float16)

# A store rounds by up to half a unit in the last place, 2 ** -9 or 2 ** -12, and an operation stores several times.
BF16 = Arithmetic(
    "bf16", np.float32, ggml_products=False, attention=None, cache=np.float32, weights_and_results="bf16", floor=1e-2
)
F16 = Arithmetic(
    "f16", np.float32, ggml_products=False, attention=None, cache=np.float32, weights_and_results="f16", floor=1.25e-3
)

ARITHMETICS = {a.name: a for a in (F64, F32, GGML_CPU, BF16, F16)}
