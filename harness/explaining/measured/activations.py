"""What a gate went through, by trying each function that engines have."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.places import TAKES
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.view import View, rows_of_operand
from firstdiff.hypotheses.hypothesis import Scene, Values, with_op
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived, swiglu
from firstdiff.model.probe import Call

Floats = npt.NDArray[np.float64]


def silu(x: Floats) -> Floats:
    """X times its sigmoid."""
    with np.errstate(over="ignore"):
        return np.asarray(x / (1 + np.exp(-x)), np.float64)


def _gelu_tanh(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def _erf(x: Floats) -> Floats:
    """Abramowitz and Stegun 7.1.26, to 2e-7, with a step of Newton's."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    y = 1 - t * np.exp(-(x**2)) * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    return np.sign(x) * y


FUNCTIONS: dict[str, Callable[[Floats], Floats]] = {
    "silu": silu,
    "nothing": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu (tanh)": _gelu_tanh,
    "gelu (erf)": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2))),
    "gelu (sigmoid)": lambda x: x / (1 + np.exp(-1.702 * x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "squared relu": lambda x: np.maximum(x, 0) ** 2,
    "one": np.ones_like,
}
"""What a gate may go through, by name; ``one`` leaves the gate out."""

OPERANDS = ("gate", "up")


def other_activations(view: View) -> Iterator[Found]:
    """Other functions of a gate, or of the operand that it lets through."""
    if view.call.op is not swiglu:
        return
    gate, up = (rows_of_operand(view.call.argument(name), view) for name in OPERANDS)
    total = float(np.square(view.error * view.scale).sum())
    given = view.result + view.error
    for of in OPERANDS:
        x, other = (gate, up) if of == "gate" else (up, gate)
        for name, function in FUNCTIONS.items():
            for times in (True, False):
                if (of, name, times) == ("gate", "silu", True):
                    continue
                made = function(x) * other if times else function(x)
                left = float(np.square((given - made) * view.scale).sum())
                if left <= total / TAKES:
                    yield Found("measured-activation", {"of": of, "function": name, "times": times}, left)


def activated(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The gated unit with another function."""
    op, function = call.op, FUNCTIONS[values["function"]]

    def unit(gate: Array, up: Array, *, arithmetic: Arithmetic) -> Array:
        x, other = (gate, up) if values["of"] == "gate" else (up, gate)
        active = arithmetic.keep(arithmetic.widen(function(np.asarray(x, np.float64))))
        return active * arithmetic.widen(other) if values["times"] else active

    return with_op(call, Derived(op, unit))


def _activation(values: Values) -> str:
    other = "up" if values["of"] == "gate" else "gate"
    through = "left as it is" if values["function"] == "nothing" else f"put through {values['function']}"
    if values["function"] == "one":
        return f"the result is {other} alone"
    times_ = f", then multiplied with {other}" if values["times"] else f", and not multiplied with {other}"
    return f"{values['of']} is {through}{times_}"


STATEMENTS = (
    statement(
        "measured-activation",
        "a gate goes through another function",
        activated,
        _activation,
        "take the activation of the file's architecture, and gate and up in their own places",
        ops=(swiglu,),
    ),
)
