"""Operations on each number by itself: sums, products, activations and gates.

Source: ggml/src/ggml-cpu/ops.cpp, unary-ops.cpp, vec.h.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from firstdiff.model.arithmetic import Arithmetic, Array

F = np.float32


def tiled(b: Array, shape: tuple[int, ...]) -> Array:
    """`b` repeated along each axis to a shape, as ggml's binary operations read their second operand."""
    for axis, n in enumerate(shape):
        if b.shape[axis] not in (1, n):
            b = np.concatenate([b] * (n // b.shape[axis]), axis=axis)
    return np.broadcast_to(b, shape)


def binary(of: Callable[[Array, Array], Array], name: str) -> Callable[..., Array]:
    """An operation on two tensors, the second repeated to the shape of the first (``ggml_add`` and its like)."""

    def operation(a: Array, b: Array, *, arithmetic: Arithmetic) -> Array:
        with np.errstate(all="ignore"):
            return of(arithmetic.widen(a), tiled(arithmetic.widen(b), a.shape))

    operation.__name__ = operation.__qualname__ = name
    return operation


def unary(of: Callable[[Array], Array], name: str) -> Callable[..., Array]:
    """An operation on one tensor."""

    def operation(x: Array, *, arithmetic: Arithmetic) -> Array:
        with np.errstate(all="ignore"):
            return arithmetic.widen(of(arithmetic.widen(x)))

    operation.__name__ = operation.__qualname__ = name
    return operation


def scale(x: Array, *, by: float, plus: float, arithmetic: Arithmetic) -> Array:
    """Times a number, plus another (``ggml_scale_bias``)."""
    y = arithmetic.widen(x) * arithmetic.dtype(by)
    return y + arithmetic.dtype(plus) if plus else y


def clamp(x: Array, *, least: float, most: float, arithmetic: Arithmetic) -> Array:
    """Between two numbers (``ggml_clamp``)."""
    return np.clip(arithmetic.widen(x), arithmetic.dtype(least), arithmetic.dtype(most))


def xielu(x: Array, *, alpha_n: float, alpha_p: float, beta: float, eps: float, arithmetic: Arithmetic) -> Array:
    """XIELU (Huang 2024; ``ggml_xielu``, whose parameters have the softplus and the sum in them)."""
    x = arithmetic.widen(x)
    an, ap, be, ep = (arithmetic.dtype(n) for n in (alpha_n, alpha_p, beta, eps))
    return np.where(x > 0, ap * x * x + be * x, (np.expm1(np.minimum(x, ep)) - x) * an + be * x)


# Activations


@cache
def _table() -> Array:
    """GELU of every float16, rounded to float16 (``ggml_table_gelu_f16``).

    It equals ggml's on x86-64, whose compiler fuses ``1 + A * x * x``.
    """
    half = np.arange(65536, dtype=np.uint16).view(np.float16).astype(F)
    with np.errstate(all="ignore"):
        inner = ((F(0.044715) * half).astype(np.float64) * half + 1.0).astype(F)
        bent = np.tanh((F(0.79788456080286535588) * half * inner).astype(np.float64)).astype(F)
        return (F(0.5) * half * (F(1) + bent)).astype(np.float16).astype(F)


def gelu(x: Array, *, arithmetic: Arithmetic) -> Array:
    """GELU by tanh (Hendrycks & Gimpel 2016; ``ggml_gelu``), which ggml's CPU backend looks up in a table."""
    x = arithmetic.widen(x)
    if arithmetic.ggml_products:
        with np.errstate(over="ignore"):
            looked_up = _table()[x.astype(np.float16).view(np.uint16)]
        return np.where(x <= -10, F(0), np.where(x >= 10, x, looked_up))  # noqa: PLR2004 - as ggml has it
    inner = 0.7978845608028654 * x * (1 + 0.044715 * x * x)
    return arithmetic.widen(0.5 * x * (1 + np.tanh(inner)))


def silu(x: Array, *, arithmetic: Arithmetic) -> Array:
    """X times its sigmoid (``ggml_silu``)."""
    x = arithmetic.widen(x)
    with np.errstate(over="ignore"):
        return arithmetic.widen(x / (1 + np.exp(-np.asarray(x, np.float64))))


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def softplus(x: Array, *, arithmetic: Arithmetic) -> Array:
    """log(1 + exp(x)) in that order (``ggml_softplus``): of numbers below -16 nothing is left in float32."""
    x = arithmetic.widen(x)
    one = arithmetic.dtype(1)
    with np.errstate(over="ignore"):
        return np.where(x > 20, x, np.log(one + np.exp(x)))  # noqa: PLR2004 - as ggml has it


def _double(of: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function of float64 numbers: what it gives is rounded once."""
    return lambda x: of(np.asarray(x, np.float64))


ADD = binary(np.add, "add")
SUB = binary(np.subtract, "sub")
MUL = binary(np.multiply, "mul")
DIV = binary(np.divide, "div")

_PLAIN: dict[str, Callable[[Array], Array]] = {
    "ABS": np.abs,
    "SGN": np.sign,
    "NEG": np.negative,
    "TANH": _double(np.tanh),
    "RELU": lambda x: np.maximum(x, 0),
    "SIGMOID": _sigmoid,
    "EXP": _double(np.exp),
    "SQR": np.square,
    "SQRT": np.sqrt,
}

SIMPLE: dict[str, Callable[..., Array]] = {
    **{name: unary(of, name.lower()) for name, of in _PLAIN.items()},
    "GELU": gelu,
    "SILU": silu,
    "SOFTPLUS": softplus,
}
"""Operations without a parameter, by ggml's name."""


# Gates


def halves(x: Array, up: Array | None, *, swapped: bool) -> tuple[Array, Array]:
    """What is activated and what it is multiplied with: two tensors, or the halves of each row of one."""
    if up is not None:
        return x, up
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return (second, first) if swapped else (first, second)


def gate(x: Array, up: Array | None = None, *, kind: str, swapped: bool, arithmetic: Arithmetic) -> Array:
    """Gated linear unit (Shazeer 2020; ``ggml_glu``): an activation of one half times the other."""
    x, up = halves(arithmetic.widen(x), None if up is None else arithmetic.widen(up), swapped=swapped)
    return SIMPLE[GATES[kind]](x, arithmetic=arithmetic) * up


def geglu(gate: Array, up: Array, *, arithmetic: Arithmetic) -> Array:
    """Gated linear unit with GELU (Shazeer 2020), [T, n_ff] (``ggml_geglu_split``)."""
    return arithmetic.keep(gelu(gate, arithmetic=arithmetic)) * arithmetic.widen(up)


GATES = {"REGLU": "RELU", "GEGLU": "GELU", "SWIGLU": "SILU"}
"""What is activated how, by ggml's name of the gate."""


def gate_oai(
    x: Array, up: Array | None = None, *, swapped: bool, alpha: float, limit: float, arithmetic: Arithmetic
) -> Array:
    """The gate of gpt-oss (``ggml_swiglu_oai``): clamped, a sigmoid of alpha x, and 1 added to the other half."""
    x, up = halves(arithmetic.widen(x), None if up is None else arithmetic.widen(up), swapped=swapped)
    x, up = np.minimum(x, arithmetic.dtype(limit)), np.clip(up, arithmetic.dtype(-limit), arithmetic.dtype(limit))
    return arithmetic.widen(x * _sigmoid(arithmetic.dtype(alpha) * x)) * (up + arithmetic.dtype(1))


def gate_clamped(x: Array, up: Array | None = None, *, swapped: bool, limit: float, arithmetic: Arithmetic) -> Array:
    """SwiGLU of clamped numbers (``GGML_GLU_OP_SWIGLU_CLAMP``)."""
    x, up = halves(arithmetic.widen(x), None if up is None else arithmetic.widen(up), swapped=swapped)
    x, up = np.minimum(x, arithmetic.dtype(limit)), np.clip(up, arithmetic.dtype(-limit), arithmetic.dtype(limit))
    return silu(x, arithmetic=arithmetic) * up
