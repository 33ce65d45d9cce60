"""Arithmetics: how an engine rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    """

    name: str
    dtype: type[np.floating]
    ggml_products: bool
    attention: type[np.floating] | None
    cache: type[np.floating]

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

ARITHMETICS = {a.name: a for a in (F64, F32, GGML_CPU)}
