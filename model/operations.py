"""The operations of a forward pass: pure functions of arrays, weights and attributes.

Each takes the `arithmetic` it shall round like as a keyword and computes in its dtype. Shapes are those of
:mod:`firstdiff.model.architectures.llama`: T tokens, S cached positions, H heads, D numbers a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.products import Rows, products
from firstdiff.model.rope import angles
from firstdiff.model.weights import Weight

Operation = Callable[..., npt.NDArray[Any]]
"""Gives numbers, or places of numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Derived:
    """An operation around another one, whose operands it takes.

    Parameters
    ----------
    of
        The other operation.
    compute
        Runs it, and does something before or after.
    sizes
        Makes the size of each result's terms from that of the other operation's (see :mod:`firstdiff.model.terms`);
        None where the result no longer is a sum of them.
    rowwise
        Whether each result of a product needs only its own row of the weight, as the product's does.
    """

    of: Operation
    compute: Operation
    sizes: Callable[[Array], Array] | None = None
    rowwise: bool = False

    @property
    def __name__(self) -> str:
        """The name of the operation that it is around."""
        return self.of.__name__

    def __call__(self, *inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
        """Run it as the other operation would be run."""
        return self.compute(*inputs, arithmetic=arithmetic, **attributes)


@lru_cache(maxsize=1024)
def signature(op: Operation) -> inspect.Signature:
    """Return the operands and attributes that an operation takes, by name."""
    return signature(op.of) if isinstance(op, Derived) else inspect.signature(op)


@lru_cache(maxsize=1024)
def parameters(op: Operation) -> dict[str, Any]:
    """Return the operands and attributes that an operation takes, but its arithmetic, and what each is by default."""
    taken = signature(op).parameters
    return {name: None if p.default is p.empty else p.default for name, p in taken.items() if name != "arithmetic"}


def embed(tokens: Sequence[int], weight: Weight, *, arithmetic: Arithmetic) -> Array:
    """Rows of the embedding, [T] -> [T, n_embd] (``ggml_get_rows``)."""
    return arithmetic.widen(weight.gather(np.asarray(tokens, np.int64)))


def rms_norm(x: Array, weight: Weight | None, *, eps: float, arithmetic: Arithmetic) -> Array:
    """Root mean square norm (Zhang & Sennrich 2019), [T, n] -> [T, n] (``ggml_rms_norm``, then ``ggml_mul``).

    The mean is summed in float64 in every arithmetic, as ggml does; a float32 engine that sums with care agrees
    with it to rounding.
    """
    x = arithmetic.widen(x)
    mean = np.einsum("...i,...i->...", x, x, dtype=np.float64)[..., None] / x.shape[-1]
    mean = arithmetic.widen(mean)
    scale = arithmetic.dtype(1) / np.sqrt(mean + arithmetic.dtype(eps))
    scaled: Array = x * scale
    return scaled if weight is None else arithmetic.keep(scaled) * arithmetic.keep(arithmetic.widen(weight.values()))


def layer_norm(
    x: Array, weight: Weight | None, bias: Weight | None = None, *, eps: float, arithmetic: Arithmetic
) -> Array:
    """Layer norm (Ba et al. 2016), [T, n] -> [T, n] (``ggml_norm``, then ``ggml_mul`` and ``ggml_add``).

    Means are summed in float64 in every arithmetic, as ggml does.
    """
    x = arithmetic.widen(x)
    centred = x - arithmetic.widen(np.asarray(x, np.float64).mean(-1, keepdims=True))
    variance = arithmetic.widen(np.square(centred, dtype=np.float64).mean(-1, keepdims=True))
    y: Array = centred * (arithmetic.dtype(1) / np.sqrt(variance + arithmetic.dtype(eps)))
    if weight is not None:
        y = arithmetic.keep(y) * arithmetic.keep(arithmetic.widen(weight.values()))
    return y if bias is None else y + arithmetic.keep(arithmetic.widen(bias.values()))


def linear(
    x: Array, weight: Weight, bias: Weight | None = None, *, heads: int | None = None, arithmetic: Arithmetic
) -> Array:
    """Product with a weight matrix, [T, in] -> [T, out], or [T, heads, out / heads] (``ggml_mul_mat``).

    See :func:`firstdiff.model.products.products`.
    """
    (y,) = products(weight, [Rows(x, arithmetic)])
    return finished(y, bias, heads=heads, arithmetic=arithmetic)


def finished(y: Array, bias: Weight | None, *, heads: int | None, arithmetic: Arithmetic) -> Array:
    """A product [T, out] with its bias, and heads apart."""
    if bias is not None:
        y += arithmetic.keep(arithmetic.widen(bias.values()))
    return y if heads is None else y.reshape(len(y), heads, -1)


def rope(
    x: Array,
    positions: Sequence[int],
    factors: Weight | None = None,
    *,
    pairing: str,
    base: float,
    scale: float = 1.0,
    dim: int | None = None,
    arithmetic: Arithmetic,
) -> Array:
    """Rotary position embedding (Su et al. 2021), [T, H, D] -> [T, H, D] (``ggml_rope_ext``).

    Parameters
    ----------
    pairing
        ``interleaved``: dimensions (2i, 2i + 1) turn together (ggml's NORM, the llama architecture);
        ``half``: (i, i + D / 2) do (ggml's NEOX, transformers' ``rotate_half``).
    base, scale, factors
        See :func:`firstdiff.model.rope.angles`.
    dim
        How many dimensions of a head are rotated, from the first on; None for all.
    """
    x = arithmetic.widen(x)
    if dim is not None and dim < x.shape[-1]:
        head = x[..., :dim]
        turned = rope(head, positions, factors, pairing=pairing, base=base, scale=scale, arithmetic=arithmetic)
        return np.concatenate([turned, x[..., dim:]], -1)
    theta = angles(
        positions,
        x.shape[-1],
        base=base,
        scale=scale,
        factors=None if factors is None else factors.values(),
        like_ggml=arithmetic.ggml_products,
    )
    cos = arithmetic.keep(arithmetic.widen(np.cos(theta)))[:, None, :]  # [T, 1, D / 2]
    sin = arithmetic.keep(arithmetic.widen(np.sin(theta)))[:, None, :]
    half = x.shape[-1] // 2
    first, second = (
        (np.s_[..., 0::2], np.s_[..., 1::2]) if pairing == "interleaved" else (np.s_[..., :half], np.s_[..., half:])
    )
    y = np.empty_like(x)
    keep = arithmetic.keep
    y[first] = keep(x[first] * cos) - keep(x[second] * sin)
    y[second] = keep(x[first] * sin) + keep(x[second] * cos)
    return y


def add(a: Array, b: Array, *, arithmetic: Arithmetic) -> Array:
    """Sum of two branches, [T, n_embd] (``ggml_add``)."""
    return arithmetic.widen(a) + arithmetic.widen(b)


def swiglu(gate: Array, up: Array, *, arithmetic: Arithmetic) -> Array:
    """Gated linear unit with SiLU (Shazeer 2020), [T, n_ff] (``ggml_swiglu_split``)."""
    gate = arithmetic.widen(gate)
    with np.errstate(over="ignore"):  # exp of a large negative gate is infinite, and the quotient rightly 0
        active: Array = gate / (1 + np.exp(-gate))
    return arithmetic.keep(active) * arithmetic.widen(up)
