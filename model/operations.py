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
from firstdiff.model.flash import attended_in_f16
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


def append(past: Array | None, new: Array, *, values: bool = False, arithmetic: Arithmetic) -> Array:
    """What a layer's cache of keys, or `values`, holds now: [S - T, H_kv, D] and [T, H_kv, D] -> [S, H_kv, D]."""
    new = arithmetic.enter(new, values=values)
    return new if past is None else np.concatenate([arithmetic.widen(past), new])


def scores(
    q: Array,
    keys: Array,
    *,
    group: int,
    factor: float = 1.0,
    mask: Array | None = None,  # noqa: ARG001 - those who judge the scores read it
    arithmetic: Arithmetic,
) -> Array:
    """Raw attention scores, unscaled: [T, H, D] and [S, H_kv, D] -> [H, T, S]; head h reads KV head h // group.

    Parameters
    ----------
    factor
        What queries are multiplied by before they are rounded for the product, which is divided by it again.
    mask
        That of :func:`soft_max`, which says which scores count.
    """
    if factor != 1:
        scaled = scores(arithmetic.widen(q) * arithmetic.dtype(factor), keys, group=group, arithmetic=arithmetic)
        return np.asarray(scaled / scaled.dtype.type(factor))
    q = arithmetic.query(q)
    tokens, heads, dim = q.shape
    grouped = q.transpose(1, 0, 2).reshape(heads // group, group * tokens, dim)  # [H_kv, group * T, D]
    kq = grouped @ arithmetic.cached(keys).transpose(1, 2, 0)  # [H_kv, group * T, S]
    return kq.reshape(heads, tokens, -1)


def soft_max(
    kq: Array,
    sinks: Weight | None = None,
    *,
    scale: float,
    offset: int = 0,
    mask: Array | None = None,
    cap: float | None = None,
    arithmetic: Arithmetic,
) -> Array:
    """Softmax over the keys, [H, T, S] -> [H, T, S]; hidden entries are 0 (``ggml_soft_max_ext``).

    Parameters
    ----------
    kq, scale
        Raw scores, and what they are multiplied by.
    sinks
        One more score per head [H], which takes its part of the sum and of which nothing is attended to.
    offset
        A query sees the keys up to its own position plus this.
    mask
        What is added to the scaled scores instead, [T, S] or [H, T, S]: minus infinity hides.
    cap
        A soft cap of the scaled scores: ``cap * tanh(z / cap)`` (Gemma Team 2024); None for none.
    """
    z = arithmetic.widen(kq) * arithmetic.dtype(scale)
    if cap is not None:
        z = arithmetic.widen(cap * np.tanh(np.asarray(z / arithmetic.dtype(cap), np.float64)))
    if mask is None:
        z[:, ~visible(kq.shape[-2], kq.shape[-1], offset)] = -np.inf
    else:
        z += arithmetic.widen(mask)
    top = z.max(-1, keepdims=True)
    sink = None if sinks is None else arithmetic.widen(sinks.values()).reshape(-1, 1, 1)
    top = top if sink is None else np.maximum(top, sink)
    z -= top
    p = np.exp(z)
    total = p.sum(-1, keepdims=True, dtype=np.float64)
    total = total if sink is None else total + np.exp(np.asarray(sink - top, np.float64))
    return p * arithmetic.widen(1.0 / total)


def visible(queries: int, keys: int, offset: int = 0) -> npt.NDArray[np.bool_]:
    """Which keys a query may see, bool [T, S]: the last `queries` positions of `keys`, each up to itself."""
    own = np.arange(keys - queries, keys)[:, None]
    return np.arange(keys)[None, :] <= own + offset


def looked_at(shape: tuple[int, ...], mask: Array | None = None) -> npt.NDArray[np.bool_]:
    """Which scores [H, T, S] count, bool [T, S] or [H, T, S]: those that no mask hides, or not of the future."""
    return visible(*shape[-2:]) if mask is None else np.isfinite(mask)


def attend(p: Array, values: Array, *, group: int, arithmetic: Arithmetic) -> Array:
    """Attention output with heads merged: [H, T, S] and [S, H_kv, D] -> [T, H * D].

    ggml's flash attention never makes `p`; with values in f16 it also adds up in f16, but for tiles of many queries.
    """
    heads, tokens, keys = p.shape
    grouped = arithmetic.probabilities(p).reshape(heads // group, group * tokens, keys)  # [H_kv, group * T, S]
    held = arithmetic.cached(values).transpose(1, 0, 2)  # [H_kv, S, D]
    if arithmetic.attends_in_f16(tokens):
        out = arithmetic.widen(attended_in_f16(grouped, held, arithmetic.chunks(tokens, keys)))
    else:
        out = grouped @ held  # [H_kv, group * T, D]
    return np.ascontiguousarray(out.reshape(heads, tokens, -1).transpose(1, 0, 2)).reshape(tokens, -1)


def add(a: Array, b: Array, *, arithmetic: Arithmetic) -> Array:
    """Sum of two branches, [T, n_embd] (``ggml_add``)."""
    return arithmetic.widen(a) + arithmetic.widen(b)


def swiglu(gate: Array, up: Array, *, arithmetic: Arithmetic) -> Array:
    """Gated linear unit with SiLU (Shazeer 2020), [T, n_ff] (``ggml_swiglu_split``)."""
    gate = arithmetic.widen(gate)
    with np.errstate(over="ignore"):  # exp of a large negative gate is infinite, and the quotient rightly 0
        active: Array = gate / (1 + np.exp(-gate))
    return arithmetic.keep(active) * arithmetic.widen(up)
