"""Numbers of operations made larger: by how much is to be seen in what the operations give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from firstdiff.dumps import Site
from firstdiff.model.arithmetic import F32, Arithmetic, Array
from firstdiff.model.attention import soft_max
from firstdiff.model.operations import Operation, embed, linear, rms_norm, rope
from firstdiff.model.probe import Call
from firstdiff.verdict import Fault, SiteVerdict

AIM = 1e-3
"""What a change is made to do, relatively, to be measured: float32 rounds by 1e-4 of it, and smaller changes act in
proportion."""

Make = Callable[[Call, Array, float, Arithmetic], Array]


@dataclass(frozen=True, slots=True)
class Change:
    """A number of an operation that is made larger.

    Parameters
    ----------
    fault, op
        Which number, and of which operation.
    make
        Gives the operation's result with the number larger by a share, of the call, its right result, the share and the
        arithmetic.
    start
        The share that is tried first.
    layers
        How many layers are tried, evenly spread.
    """

    fault: Fault
    op: Operation
    make: Make
    start: Callable[[Call], float] = lambda _: AIM
    layers: int = 3


def _attribute(name: str) -> Make:
    def make(call: Call, _right: Array, share: float, arithmetic: Arithmetic) -> Array:
        return call.with_arguments(**{name: call.argument(name) * (1 + share)}).compute(arithmetic)

    return make


def _epsilon(call: Call) -> float:
    """What changes the smallest row by some `AIM`: the root of its mean square halves what is added."""
    x, eps = np.asarray(call.argument("x"), np.float64), float(call.argument("eps"))
    return 2 * AIM * (float(np.square(x).mean(-1).min()) + eps) / eps if eps else AIM


def _all(_call: Call, right: Array, share: float, _arithmetic: Arithmetic) -> Array:
    return right + share * right


def _matrix(call: Call, right: Array, share: float, arithmetic: Arithmetic) -> Array:
    weight = call.argument("weight")
    if arithmetic.products is not None:
        larger = replace(weight, dense=(weight.values() * (1 + share)).astype(np.float32))
        return call.with_arguments(weight=larger).compute(arithmetic)
    return right + share * (right if call.argument("bias") is None else call.with_arguments(bias=None).compute(F32))


def _weight(call: Call, right: Array, share: float, arithmetic: Arithmetic) -> Array:
    row, column = element(call)
    weights = call.argument("weight").rows(row, row + 1).astype(np.float64)[0]
    pair = np.array([weights[column], weights[column] + share * math.sqrt(np.square(weights).mean())])
    right_one, wrong_one = arithmetic.operand(pair) if arithmetic.products is not None else pair
    wrong = np.array(right, np.float64)
    flat = wrong.reshape(len(wrong), -1)
    flat[:, row] += (wrong_one - right_one) * call.argument("x")[:, column]
    return wrong


def element(call: Call) -> tuple[int, int]:
    """Row and column of the weight that stands for all of a product's.

    It is of the middle row, and of the column for which half of the others have smaller inputs: relative to their
    token's, at the token where these are largest.
    """
    x = np.asarray(call.argument("x"), np.float64)
    size = np.linalg.norm(x, axis=-1, keepdims=True)
    most = (np.abs(x) / np.where(size > 0, size, 1.0)).max(0)
    return call.argument("weight").shape[0] // 2, int(np.argsort(most, kind="stable")[len(most) // 2])


CHANGES = (
    Change(Fault.NORM_EPSILON, rms_norm, _attribute("eps"), _epsilon, layers=8),  # the size of activations decides
    Change(Fault.ROPE_BASE, rope, _attribute("base")),
    Change(Fault.SOFTMAX_SCALE, soft_max, _attribute("scale")),
    Change(Fault.MATRIX, linear, _matrix),
    Change(Fault.WEIGHT, linear, _weight, lambda _: 1.0),
    Change(Fault.EMBEDDING, embed, _all),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A number of one operation, and the judged site that shows it."""

    change: Change
    site: Site
    judged: SiteVerdict
