"""Faults that no table lists: a call gone wrong at random places in a random way.

They are made with nothing of what measures them: plain numpy on what a call reads or gives.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from builders.random_attention import of_bias, of_bias_before, of_dimensions, of_heads, of_keys, of_mask
from builders.random_numbers import of_curve, of_rounding
from builders.random_places import Floats, Make, altered, factor, of_features, places, put, result
from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, with_op
from firstdiff.hypotheses.where import Where
from firstdiff.model.arithmetic import Array
from firstdiff.model.attention import append, attend, scores, soft_max
from firstdiff.model.operations import Derived, add, linear, rms_norm, rope, swiglu
from firstdiff.model.probe import Call


@dataclass(frozen=True)
class Drawn:
    """A fault: of which kind it is, at which point and layer, and what makes it."""

    kind: str
    point: str
    layer: int | None
    says: str
    make: Make

    @property
    def hypothesis(self) -> Hypothesis:
        """The fault as one that can be planted."""

        def change(call: Call, scene: Scene, _values: Values) -> Call | None:
            return self.make(call, scene) if call.point == self.point else None

        rounds = "rounding" in self.kind or "steps" in self.says
        return Hypothesis(f"random {self.kind}", Where(None), self.says, "", change, rounds=rounds)


def of_outputs(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
    """The result at some outputs."""
    n = int(np.prod(shape[1:]))
    arrays = {} if call.op is append else call.arguments  # what was there before is no tensor of the run
    own = [name for name, x in arrays.items() if isinstance(x, np.ndarray) and x.size == np.prod(shape)]
    told, change = altered(rng, n, others=bool(own))

    def make(call: Call, _scene: Scene) -> Call:
        other = call.argument(rng_own) if (rng_own := own[0] if own else "") else None
        flat = None if other is None else other.reshape(len(other), -1)
        return result(call, of_features(lambda y: change(y, flat)))

    return f"outputs {told}", make


def of_tokens(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
    """The result of some tokens."""
    told, change = altered(rng, shape[0], others=False)

    def make(call: Call, _scene: Scene) -> Call | None:
        return result(call, lambda y: np.moveaxis(change(np.moveaxis(y, 0, -1), None), -1, 0)) if _long(call) else None

    return f"tokens {told}", make


def _long(call: Call) -> bool:
    return call.step == 0


def of_inputs(rng: random.Random, call: Call, _shape: tuple[int, ...]) -> tuple[str, Make]:
    """A product that does not count all its inputs once, or reads some elsewhere."""
    n = call.argument("weight").shape[-1]
    if rng.random() < 0.75:
        at, told = places(rng, n)
        by = factor(rng)

        def make(call: Call, _scene: Scene) -> Call:
            x = call.argument("x")
            part = np.zeros_like(x)
            part[:, at] = x[:, at]
            op = call.op

            def computed(x: Array, weight: Any, *rest: Any, arithmetic: Any, **attributes: Any) -> Array:
                y = op(x, weight, *rest, arithmetic=arithmetic, **attributes)
                part = np.zeros_like(x)
                part[:, at] = x[:, at]
                more = linear(part, weight, heads=attributes.get("heads"), arithmetic=arithmetic)
                return np.asarray(y + more.dtype.type(by - 1) * more)

            return with_op(call, Derived(op, computed, sizes=lambda size: size))

        return f"inputs {told} counted {by} times", make
    by = rng.choice([1, -1, 2, 8, -8, 32])
    at, told = places(rng, n)
    at = at[(at + by >= 0) & (at + by < n)]

    def shifted(call: Call, _scene: Scene) -> Call:
        x = call.argument("x")
        return call.with_arguments(x=put(x, at, x[..., at + by]))

    return f"inputs {told} read {by} further on", shifted


def of_operand(rng: random.Random, call: Call, names: tuple[str, ...]) -> tuple[str, Make]:
    """An operand at some features."""
    name = rng.choice(names)
    own = call.argument(name)
    n = int(np.prod(own.shape[1:]))
    others = [other for other in names if other != name]
    told, change = altered(rng, n, others=bool(others))

    def make(call: Call, _scene: Scene) -> Call:
        x = call.argument(name)
        other = call.argument(others[0]).reshape(len(x), -1) if others else None
        return call.with_arguments(**{name: change(x.reshape(len(x), -1), other).reshape(x.shape)})

    return f"{name}: {told}", make


def of_norm_weight(rng: random.Random, call: Call, _shape: tuple[int, ...]) -> tuple[str, Make]:
    """A norm's weight at some features."""
    told, change = altered(rng, call.argument("weight").shape[-1], others=False)

    def make(call: Call, _scene: Scene) -> Call:
        weight = call.argument("weight")
        return call.with_arguments(weight=replace(weight, dense=change(weight.values(), None).astype(np.float32)))

    return f"weight: {told}", make


def of_norm_sum(rng: random.Random, call: Call, _shape: tuple[int, ...]) -> tuple[str, Make]:
    """A norm whose mean leaves out some features, or counts them otherwise."""
    n = call.argument("x").shape[-1]
    at, told = places(rng, n)
    by = rng.choice([0.0, 0.0, 2.0])

    def make(call: Call, _scene: Scene) -> Call:
        op = call.op

        def computed(x: Array, weight: Any, *, eps: float, arithmetic: Any) -> Array:
            wide = np.asarray(x, np.float64)
            count = np.ones(n)
            count[at] = by
            mean = (wide**2 * count).mean(-1, keepdims=True)
            y = arithmetic.widen(wide / np.sqrt(mean + eps))
            return y if weight is None else y * arithmetic.widen(weight.values())

        return with_op(call, Derived(op, computed, sizes=lambda size: size))

    return f"squares {told} counted {by} times", make


def of_positions(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
    """Some tokens rotated as if they stood elsewhere."""
    at, told = places(rng, shape[0])
    by = rng.choice([1, -1, 2, 5, 16, 100])

    def make(call: Call, _scene: Scene) -> Call | None:
        positions = np.array(call.argument("positions"))
        if not _long(call):
            return None
        positions[at] = positions[at] + by
        return call.with_arguments(positions=tuple(map(int, positions)))

    return f"tokens {told} at positions {by} on", make


def of_experts(rng: random.Random, call: Call, _shape: tuple[int, ...]) -> tuple[str, Make]:
    """What one expert gives counts otherwise than once: in its own rows, or in the sum."""
    expert, by, sums = rng.randrange(4), factor(rng), call.point == "ffn_moe_out"

    def make(call: Call, scene: Scene) -> Call | None:
        ids = scene.beside(call, "ffn_moe_topk")
        shares = scene.beside(call, "ffn_moe_weighted") if sums else None
        if ids is None or (sums and shares is None):
            return None
        meant = (ids == expert)[..., None]

        def change(y: Floats) -> Floats:
            if shares is not None:
                return y + ((by - 1) * np.where(meant, shares, 0)).sum(1)
            return np.where(meant.reshape(*ids.shape, *[1] * (y.ndim - 2)), y * by, y)

        return result(call, change)

    return f"expert {expert} counted {by} times", make


MIXED = ("ffn_gate_exps", "ffn_up_exps", "ffn_moe_swiglu", "ffn_down_exps", "ffn_moe_weighted", "ffn_moe_out")

Kind = Callable[[random.Random, Call, tuple[int, ...]], tuple[str, Make]]


def _rounding(*names: str) -> Kind:
    return lambda rng, call, _: of_rounding(rng, call, names)


def _operand(*names: str) -> Kind:
    return lambda rng, call, _: of_operand(rng, call, names)


def _product_rounding(rng: random.Random, call: Call, _shape: tuple[int, ...]) -> tuple[str, Make]:
    """All of an output matrix rounded is how an engine holds it, and no fault."""
    return of_rounding(rng, call, ("x", "weight") if call.layer is not None else ("x",))


_ANY: dict[str, Kind] = {"outputs": of_outputs, "tokens": of_tokens}

_KINDS: dict[Any, dict[str, Kind]] = {
    linear: {**_ANY, "inputs": of_inputs, "rounding": _product_rounding, "curve": of_curve},
    rms_norm: {**_ANY, "norm weight": of_norm_weight, "norm sum": of_norm_sum, "curve": of_curve},
    rope: {**_ANY, "operand": _operand("x"), "positions": of_positions},
    append: {"outputs": of_outputs},
    scores: {
        "dimensions": of_dimensions,
        "heads": of_heads,
        "bias": of_bias,
        "rounding": _rounding("q", "keys"),
        "curve": of_curve,
    },
    soft_max: {"mask": of_mask, "heads": of_heads, "bias before": of_bias_before},
    attend: {**_ANY, "keys": of_keys, "rounding": _rounding("p", "values")},
    swiglu: {**_ANY, "operand": _operand("gate", "up"), "curve": of_curve},
    add: {**_ANY, "operand": _operand("a", "b")},
}
"""The kinds of faults that an operation can have; those of others are `_ANY`."""


def draw(rng: random.Random, calls: list[tuple[Call, tuple[int, ...]]]) -> Iterator[Drawn]:
    """Faults at random calls, one after another."""
    while True:
        call, shape = rng.choice(calls)
        of = _KINDS.get(call.op, _ANY)
        of = {**of, "experts": of_experts} if call.point in MIXED else of
        kind = rng.choice(list(of))
        told, make = of[kind](rng, call, shape)
        yield Drawn(f"{call.op.__name__} {kind}", call.point, call.layer, told, make)
