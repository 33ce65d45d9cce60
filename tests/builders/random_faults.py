"""Faults that no table lists: a call gone wrong at random places in a random way.

They are made with nothing of what measures them: plain numpy on what a call reads or gives.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values, with_op
from firstdiff.hypotheses.where import Where
from firstdiff.model.arithmetic import Array
from firstdiff.model.attention import append, attend, scores, soft_max
from firstdiff.model.operations import Derived, add, linear, rms_norm, rope, swiglu
from firstdiff.model.probe import Call

Floats = npt.NDArray[Any]
Make = Callable[[Call, Scene], Call | None]


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


def places(rng: random.Random, n: int) -> tuple[npt.NDArray[np.intp], str]:
    """Random places along an axis: a range, a tail, a part of each so many, or a single one."""
    how = rng.choice(["range", "range", "tail", "part", "single", "aligned"])
    if how == "part" and n >= 16:
        period = rng.choice([p for p in (4, 8, 16, 32, 64, 128) if 2 * p <= n])
        start = rng.randrange(period)
        length = rng.randint(1, max(1, period // 2))
        within = (np.arange(n) - start) % period
        return np.flatnonzero(within < length), f"{length} from {start} of each {period}"
    if how == "single":
        at = rng.randrange(n)
        return np.array([at]), f"{at}"
    if how == "tail":
        start = n - rng.randint(1, max(1, n // 4))
        return np.arange(start, n), f"{start} to the end"
    if how == "aligned" and n >= 32:
        unit = rng.choice([u for u in (8, 16, 32, 64) if 2 * u <= n])
        start = rng.randrange(0, n // unit) * unit
        stop = min(n, start + unit * rng.randint(1, max(1, n // unit // 4)))
        return np.arange(start, stop), f"{start} up to {stop}"
    start = rng.randrange(n)
    stop = rng.randint(start + 1, min(n, start + max(1, n // 3)))
    return np.arange(start, stop), f"{start} up to {stop}"


def factor(rng: random.Random) -> float:
    return rng.choice([0.0, 0.0, 2.0, 0.5, -1.0, 1.25, 0.85, round(rng.uniform(0.1, 3), 3)])


# What is made of an array [.., n] along its last axis


def _altered(rng: random.Random, n: int, *, others: bool) -> tuple[str, Callable[[Floats, Floats | None], Floats]]:
    """A change of the last axis: how it is called, and what makes it of the numbers and of another tensor's."""
    how = rng.choice(
        ["scaled", "scaled", "scaled", "raised", "shifted", "exchanged", *(["replaced"] if others else [])]
    )
    at, told = places(rng, n)
    if how == "scaled":
        by = factor(rng)
        return f"{told} times {by}", lambda x, _: _put(x, at, x[..., at] * by)
    if how == "raised":
        by = rng.choice([0.5, -0.25, 1.0, 0.1])
        return f"{told} plus {by}", lambda x, _: _put(x, at, x[..., at] + by)
    if how == "shifted":
        by = rng.choice([1, -1, 2, 8, -8, 32, -16])
        at = at[(at + by >= 0) & (at + by < n)]
        return f"{told} taken {by} further on", lambda x, _: _put(x, at, x[..., at + by])
    if how == "exchanged":
        length = rng.randint(1, max(1, n // 4))
        a = rng.randrange(0, n - 2 * length + 1) if n >= 2 * length else 0
        b = rng.randint(a + length, n - length) if n >= 2 * length else a
        one, two = np.arange(a, a + length), np.arange(b, min(n, b + length))
        return f"{a} and {b} exchanged, {length} long", lambda x, _: _put(_put(x, one, x[..., two]), two, x[..., one])
    return f"{told} of another tensor", lambda x, other: _put(x, at, other[..., at])


def _put(x: Floats, at: npt.NDArray[np.intp], new: Floats) -> Floats:
    y = np.array(x)
    y[..., at] = new
    return y


def _result(call: Call, change: Callable[[Floats], Floats]) -> Call:
    """A call whose result is changed."""
    op = call.op

    def computed(*inputs: object, arithmetic: Any, **attributes: object) -> Array:
        y = op(*inputs, arithmetic=arithmetic, **attributes)
        return np.ascontiguousarray(change(y)).astype(y.dtype)

    return with_op(call, Derived(op, computed, sizes=lambda size: size))


def _flat(change: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    """A change of the features of each token, heads side by side."""
    return lambda y: change(y.reshape(len(y), -1)).reshape(y.shape)


def of_outputs(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
    """The result at some outputs."""
    n = int(np.prod(shape[1:]))
    arrays = {} if call.op is append else call.arguments  # what was there before is no tensor of the run
    own = [name for name, x in arrays.items() if isinstance(x, np.ndarray) and x.size == np.prod(shape)]
    told, change = _altered(rng, n, others=bool(own))

    def make(call: Call, _scene: Scene) -> Call:
        other = call.argument(rng_own) if (rng_own := own[0] if own else "") else None
        flat = None if other is None else other.reshape(len(other), -1)
        return _result(call, _flat(lambda y: change(y, flat)))

    return f"outputs {told}", make


def of_tokens(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
    """The result of some tokens."""
    told, change = _altered(rng, shape[0], others=False)

    def make(call: Call, _scene: Scene) -> Call | None:
        return _result(call, lambda y: np.moveaxis(change(np.moveaxis(y, 0, -1), None), -1, 0)) if _long(call) else None

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
            op, bias = call.op, call.argument("bias")
            del bias

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
        return call.with_arguments(x=_put(x, at, x[..., at + by]))

    return f"inputs {told} read {by} further on", shifted


def of_operand(rng: random.Random, call: Call, names: tuple[str, ...]) -> tuple[str, Make]:
    """An operand at some features."""
    name = rng.choice(names)
    own = call.argument(name)
    n = int(np.prod(own.shape[1:]))
    others = [other for other in names if other != name]
    told, change = _altered(rng, n, others=bool(others))

    def make(call: Call, _scene: Scene) -> Call:
        x = call.argument(name)
        other = call.argument(others[0]).reshape(len(x), -1) if others else None
        return call.with_arguments(**{name: change(x.reshape(len(x), -1), other).reshape(x.shape)})

    return f"{name}: {told}", make


def of_norm_weight(rng: random.Random, call: Call, _shape: tuple[int, ...]) -> tuple[str, Make]:
    """A norm's weight at some features."""
    told, change = _altered(rng, call.argument("weight").shape[-1], others=False)

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


def of_keys(rng: random.Random, call: Call, _shape: tuple[int, ...]) -> tuple[str, Make]:
    """Attention that does not count all keys once."""
    heads, _, tokens = call.argument("p").shape
    at, told = places(rng, tokens)
    by = factor(rng)
    only = rng.randrange(heads) if rng.random() < 0.5 else None

    def make(call: Call, _scene: Scene) -> Call | None:
        p = np.asarray(call.argument("p"))
        if at.max() >= p.shape[-1]:
            return None
        changed = _put(p, at, p[..., at] * p.dtype.type(by))
        if only is not None:
            changed[np.arange(heads) != only] = p[np.arange(heads) != only]
        return call.with_arguments(p=changed)

    return f"keys {told} counted {by} times{'' if only is None else f' in head {only}'}", make


def of_dimensions(rng: random.Random, call: Call, _shape: tuple[int, ...]) -> tuple[str, Make]:
    """Scores that do not count all dimensions of a head once."""
    at, told = places(rng, call.argument("q").shape[-1])
    by = factor(rng)

    def make(call: Call, _scene: Scene) -> Call:
        q = call.argument("q")
        return call.with_arguments(q=_put(q, at, q[..., at] * q.dtype.type(by)))

    return f"dimensions {told} counted {by} times", make


def of_heads(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
    """Scores or probabilities of some heads, scaled."""
    at, told = places(rng, shape[0])
    by = factor(rng) or 0.5

    def make(call: Call, _scene: Scene) -> Call:
        def change(y: Floats) -> Floats:
            y = np.array(y)
            y[at] = y[at] * by
            return y

        return _result(call, change)

    return f"heads {told} times {by}", make


def of_bias(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
    """Scores with something added that goes with the distance or the key."""
    if rng.random() < 0.5:
        slope = round(rng.uniform(-0.5, 0.5), 3) or 0.1

        def sloped(call: Call, _scene: Scene) -> Call:
            def change(y: Floats) -> Floats:
                t, s = y.shape[-2:]
                distance = np.arange(s - t, s)[:, None] - np.arange(s)[None]
                return y - slope * np.maximum(distance, 0)

            return _result(call, change)

        return f"slope {slope}", sloped
    at, told = places(rng, shape[-1])
    by = rng.choice([0.5, -1.0, 2.0])

    def raised(call: Call, _scene: Scene) -> Call | None:
        return _result(call, lambda y: _put(y, at, y[..., at] + by)) if at.max() < _keys(call) else None

    return f"keys {told} plus {by}", raised


def _keys(call: Call) -> int:
    x = call.argument("kq")
    return int((call.argument("keys") if x is None else x.swapaxes(0, -1)).shape[0])


def of_mask(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
    """A softmax with another mask: a window, chunks, hidden keys, some queries that see less."""
    how = rng.choice(["window", "chunk", "keys", "late"])
    size = rng.randint(2, max(3, shape[-1] // 2))
    at, told = places(rng, shape[-1])
    told = {"keys": f"keys {told} hidden", "late": "one key less"}.get(how, f"{how} {size}")

    def make(call: Call, _scene: Scene) -> Call | None:
        kq = np.asarray(call.argument("kq"))
        t, s = kq.shape[-2:]
        own, key = np.arange(s - t, s)[:, None], np.arange(s)[None]
        seen = key <= own
        if how == "window":
            seen &= key > own - size
        elif how == "chunk":
            seen &= key // size == own // size
        elif how == "keys":
            if at.max() >= s:
                return None
            seen[:, at] = False
            seen |= key == own
        else:
            seen &= (key < own) | (own == 0)
        return call.with_arguments(mask=np.where(seen, 0, -np.inf).astype(np.float32))

    return told, make


def of_curve(rng: random.Random, call: Call, _shape: tuple[int, ...]) -> tuple[str, Make]:
    """A result that is a function of the right one: clipped, with a cap, a power, another slope below zero, steps."""
    how = rng.choice(["clip", "cap", "power", "leak", "steps", "knots"])
    share = rng.uniform(0.3, 0.9)
    exponent = rng.choice([0.5, 0.9, 1.1, 2.0])
    steps = rng.choice([16, 64, 256])
    bent = [rng.uniform(0.2, 1.5) for _ in range(4)]
    one_sided = rng.random() < 0.5
    unit: list[float] = []

    def change(y: Floats) -> Floats:
        if not unit:
            unit.append(float(f"{np.quantile(np.abs(y), share):.2g}"))
        u = unit[0]
        if how == "clip":
            return np.minimum(y, u) if one_sided else np.clip(y, -u, u)
        if how == "cap":
            return u * np.tanh(y / u)
        if how == "power":
            return np.sign(y) * np.abs(y) ** exponent
        if how == "leak":
            return np.where(y < 0, y * bent[0], y)
        if how == "steps":
            step = 4 * u / steps
            return np.round(y / step) * step
        knots = u * np.array([-1.0, 0.0, 1.0])
        slopes = np.array(bent)
        values = np.array([-slopes[1] * u, 0.0, slopes[2] * u])
        inner = np.interp(y, knots, values)
        inner = np.where(y < knots[0], values[0] + slopes[0] * (y - knots[0]), inner)
        return np.where(y > knots[-1], values[-1] + slopes[3] * (y - knots[-1]), inner)

    return f"{how} ({share:.2f}, {exponent}, {steps}, {one_sided})", lambda call, _scene: _result(call, change)


def _int8(x: Floats, axis: int | None, block: int | None) -> Floats:
    y = x if block is None else x.reshape(*x.shape[:-1], -1, block)
    most = np.abs(y).max() if axis is None else np.abs(y).max(-1, keepdims=True)
    scale = np.where(most > 0, most, 1) / 127
    return (np.round(y / scale) * scale).reshape(x.shape).astype(x.dtype)


def _fewer_bits(x: Floats, bits: int) -> Floats:
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent).astype(x.dtype)


def of_rounding(rng: random.Random, call: Call, names: tuple[str, ...]) -> tuple[str, Make]:
    """One operand rounded: to fewer bits, or to int8 with a scale for the tensor, a row or a block."""
    name = rng.choice(names)
    last = call.argument(name).shape[-1]
    ways: dict[str, Callable[[Floats], Floats]] = {
        "bf16": lambda x: _fewer_bits(x, 8),
        "f16": lambda x: _fewer_bits(x, 11),
        "fp8": lambda x: _fewer_bits(x, 4),
        "int8 by tensor": lambda x: _int8(x, None, None),
        "int8 by row": lambda x: _int8(x, -1, None),
    }
    if last % 32 == 0:
        ways["int8 by 32"] = lambda x: _int8(x, -1, 32)
    if last % 128 == 0:
        ways["int8 by 128"] = lambda x: _int8(x, -1, 128)
    how = rng.choice(list(ways))

    def make(call: Call, _scene: Scene) -> Call:
        x = call.argument(name)
        if isinstance(x, np.ndarray):
            return call.with_arguments(**{name: ways[how](x)})
        return call.with_arguments(**{name: replace(x, dense=ways[how](x.values()).astype(np.float32))})

    return f"{name} rounded to {how}", make


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

        return _result(call, change)

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


def _bias_before(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
    """Scores changed on their way into the softmax."""
    told, make = of_bias(rng, replace(call, op=scores, point="kq"), shape)

    def before(call: Call, scene: Scene) -> Call | None:
        kq = np.asarray(call.argument("kq"))
        given = replace(call, op=_given, inputs=(kq,), attributes={})
        changed = make(given, scene)
        return None if changed is None else call.with_arguments(kq=changed.op(kq, arithmetic=None))

    return f"before: {told}", before


def _given(kq: Floats, *, arithmetic: Any) -> Floats:
    del arithmetic
    return kq


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
    soft_max: {"mask": of_mask, "heads": of_heads, "bias before": _bias_before},
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
