"""Random faults of attention: keys, dimensions, heads, masks, and what is added to scores."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np

from builders.random_places import Floats, Make, factor, places, put, result
from firstdiff.hypotheses.hypothesis import Scene
from firstdiff.model.attention import scores
from firstdiff.model.probe import Call


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
        changed = put(p, at, p[..., at] * p.dtype.type(by))
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
        return call.with_arguments(q=put(q, at, q[..., at] * q.dtype.type(by)))

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

        return result(call, change)

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

            return result(call, change)

        return f"slope {slope}", sloped
    at, told = places(rng, shape[-1])
    by = rng.choice([0.5, -1.0, 2.0])

    def raised(call: Call, _scene: Scene) -> Call | None:
        return result(call, lambda y: put(y, at, y[..., at] + by)) if at.max() < _keys(call) else None

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


def of_bias_before(rng: random.Random, call: Call, shape: tuple[int, ...]) -> tuple[str, Make]:
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
