"""Random faults of numbers wherever they stand: curves, and operands that are rounded."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from builders.random_places import Floats, Make, result
from firstdiff.hypotheses.hypothesis import Scene
from firstdiff.model.probe import Call


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

    return f"{how} ({share:.2f}, {exponent}, {steps}, {one_sided})", lambda call, _scene: result(call, change)


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
