"""Products: of matrices, and of experts' matrices (ggml/src/ggml-cpu/ggml-cpu.c)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from firstdiff.model import quants
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import linear
from firstdiff.model.products import Rows
from firstdiff.model.products import products as multiplied
from firstdiff.model.quants import BY_NAME
from firstdiff.model.rounding import turn
from firstdiff.model.weights import Weight

F = np.float32
Matrix = Weight | Array
"""A weight of the file, or what was computed: [ne3, ne2, out, in]."""


def rounded(x: Array, kind: str, arithmetic: Arithmetic) -> Array:
    """Activations as ggml's CPU backend rounds them for a matrix of a type; see `quants.round_activations`."""
    if not arithmetic.ggml_products or kind == "F32":
        return arithmetic.operand(x)
    flat = np.ascontiguousarray(x, F).reshape(-1, x.shape[-1])
    return arithmetic.widen(quants.round_activations(flat, BY_NAME[kind])[0].reshape(x.shape))


def product(w: Array, x: Array, arithmetic: Arithmetic) -> Array:
    """[.., out, in] and [.., row, in] -> [.., row, out], summed in float64."""
    return arithmetic.widen(np.matmul(np.asarray(x, np.float64), np.swapaxes(np.asarray(w, np.float64), -1, -2)))


def repeated(w: Array, x: Array) -> Array:
    """A matrix for each matrix of `x`: several of these share one, in turn (grouped queries)."""
    for axis in (1, 0):
        if w.shape[axis] != x.shape[axis]:
            w = np.repeat(w, x.shape[axis] // w.shape[axis], axis=axis)
    return w


def mul_mat(w: Matrix, x: Array, *, kind: str, turned: bool, arithmetic: Arithmetic) -> Array:
    """[ne3, ne2, out, in] and [ne3, ne2, row, in] -> [ne3, ne2, row, out] (``ggml_mul_mat``).

    Parameters
    ----------
    kind
        The type of the matrix, which decides how the rows are rounded.
    turned
        Whether the matrix is Hadamard's, and the product is made without it (``ggml_compute_forward_fwht``).
    """
    if turned:
        return turn(np.ascontiguousarray(x, F), x.shape[-1])
    w = matrix(w)
    if isinstance(w, Weight) and len(w.shape) == 2:  # noqa: PLR2004 - a matrix
        y = linear(np.ascontiguousarray(x).reshape(-1, x.shape[-1]), w, arithmetic=arithmetic)
        return y.reshape(*x.shape[:3], -1)
    if isinstance(w, Weight):  # a matrix for each head, of which one is decoded at a time
        y = np.empty((*x.shape[:3], w.shape[-2]), arithmetic.dtype)
        for head in range(x.shape[1]):
            one = expert(w, head // (x.shape[1] // w.shape[0]))
            y[:, head] = mul_mat(one, x[:, head : head + 1], kind=kind, turned=False, arithmetic=arithmetic)[:, 0]
        return y
    return product(repeated(w, x), rounded(x, kind, arithmetic), arithmetic)


def matrix(w: Matrix) -> Matrix:
    """A weight of one row as a matrix."""
    return replace(w, shape=(1, *w.shape)) if isinstance(w, Weight) and len(w.shape) == 1 else w


def dense(w: Matrix) -> Array:
    """The numbers of a weight [ne3, ne2, ne1, ne0], all of them decoded."""
    return w.values().reshape((1,) * (4 - len(w.shape)) + w.shape) if isinstance(w, Weight) else w


def expert(w: Weight, number: int) -> Weight:
    """One expert's matrix of a weight [expert, out, in]."""
    size = w.raw.size // w.shape[0]
    return replace(w, shape=w.shape[1:], raw=w.raw[number * size : (number + 1) * size])


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Rows of tokens, and the experts whose matrices they are multiplied with.

    Parameters
    ----------
    x, ids
        [1, token, row, in] and [1, 1, token, chosen]: of one row each expert takes it, else its own.
    arithmetic, owner
        As of :class:`firstdiff.model.products.Rows`.
    """

    x: Array
    ids: Array
    arithmetic: Arithmetic
    owner: object = None

    @property
    def experts(self) -> Array:
        """The expert of each token and place [token, chosen]."""
        return np.asarray(self.ids[0, 0])

    @property
    def rows(self) -> Array:
        """The row that each expert takes [token, chosen, in]."""
        return np.broadcast_to(self.x[0], (*self.experts.shape, self.x.shape[-1]))


def mul_mat_id(w: Matrix, x: Array, ids: Array, *, kind: str, arithmetic: Arithmetic) -> Array:
    """Each token's rows times the matrices of the experts that it chose (``ggml_mul_mat_id``).

    [1, expert, out, in], [1, token, row, in] and [1, 1, token, chosen] -> [1, token, chosen, out].
    """
    of = Chosen(x, ids, arithmetic)
    if isinstance(w, Weight):
        return expert_products(w, [of])[0]
    y = np.empty((1, *of.experts.shape, w.shape[-2]), arithmetic.dtype)
    for number in np.unique(of.experts):
        at = of.experts == number
        y[0][at] = product(w[0, int(number)], rounded(of.rows[at], kind, arithmetic), arithmetic)
    return y


def expert_products(w: Weight, several: Sequence[Chosen]) -> list[Array]:
    """The products of :func:`mul_mat_id`, of several; each expert's matrix is decoded once for all."""
    made = [np.empty((1, *of.experts.shape, w.shape[-2]), of.arithmetic.dtype) for of in several]
    for number in sorted({int(n) for of in several for n in np.unique(of.experts)}):
        at = [of.experts == number for of in several]
        meant = [i for i, places in enumerate(at) if places.any()]
        rows = [
            Rows(np.ascontiguousarray(several[i].rows[at[i]]), several[i].arithmetic, several[i].owner) for i in meant
        ]
        for i, y in zip(meant, multiplied(expert(w, number), rows), strict=True):
            made[i][0][at[i]] = y
    return made


def add_id(a: Array, b: Array, ids: Array, *, arithmetic: Arithmetic) -> Array:
    """A row of the chosen experts' added to each (``ggml_add_id``)."""
    return np.asarray(arithmetic.widen(a) + arithmetic.widen(b)[0, 0][ids[0, 0]][None])
