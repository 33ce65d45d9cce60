"""Where something happens, in words: ``Qcur_rope and Kcur_rope at every sixth layer from 5``, ``3-5, 9``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site

ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth"}
REPEATS = 3  # layers from which a regular distance is a pattern
PARTS = 3  # of an extent that are told; of what is left, how many sites it is

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Part:
    """Points that are all meant at each of these layers of each of these steps."""

    points: tuple[str, ...]
    layers: frozenset[int | None]
    steps: frozenset[int]

    @property
    def sites(self) -> int:
        return len(self.points) * len(self.layers) * len(self.steps)

    def told(self, layers: int, steps: int, tokens: Sequence[int]) -> str:
        inside = sorted(n for n in self.layers if n is not None)
        where = f" {of_layers(inside, layers)}" if inside else ""
        return enumerated(self.points) + where + _of_steps(sorted(self.steps), steps, tokens)


def enumerated(names: Sequence[str]) -> str:
    """Write ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def extent(sites: Sequence[Site], layers: int, steps: int, tokens: Sequence[int] = ()) -> str:
    """Say where sites are, of a run of so many layers and steps: never more than these.

    Points at the same layers and steps are told together, the others apart: ``attn_norm at every layer; ffn_norm at
    layer 1``.

    Parameters
    ----------
    sites
        At least one, in execution order.
    layers, steps
        How many there are in all.
    tokens
        How many tokens each step has, so that all steps of one token, or all of several, are told as that.
    """
    places: dict[str, dict[tuple[int | None, int], None]] = defaultdict(dict)  # as an ordered set
    for s in sorted(sites, key=lambda s: s.step):
        places[s.point][s.layer, s.step] = None
    alike = _by_value({point: tuple(where) for point, where in places.items()})
    parts = [part for where, points in alike.items() for part in _parts(points, where)]
    told = [part.told(layers, steps, tokens) for part in parts[:PARTS]]
    if left := sum(part.sites for part in parts[PARTS:]):
        told.append(f"and {left:,} more site{'s' if left > 1 else ''}")
    return "; ".join(told)


def _parts(points: tuple[str, ...], where: Collection[tuple[int | None, int]]) -> list[_Part]:
    """The places as layers times steps: steps with the same layers together, or layers with the same steps."""
    steps_of: dict[int | None, set[int]] = defaultdict(set)
    layers_of: dict[int, set[int | None]] = defaultdict(set)
    for layer, step in where:
        steps_of[layer].add(step)
        layers_of[step].add(layer)
    by_step = _by_value({step: frozenset(layers) for step, layers in layers_of.items()})
    by_layer = _by_value({layer: frozenset(steps) for layer, steps in steps_of.items()})
    if len(by_step) <= len(by_layer):
        return [_Part(points, layers, frozenset(steps)) for layers, steps in by_step.items()]
    return [_Part(points, frozenset(layers), steps) for steps, layers in by_layer.items()]


def _by_value(values: Mapping[K, V]) -> dict[V, tuple[K, ...]]:
    """The keys of each value."""
    keys: dict[V, tuple[K, ...]] = {}
    for key, value in values.items():
        keys[value] = (*keys.get(value, ()), key)
    return keys


def of_layers(chosen: Sequence[int], layers: int) -> str:
    """Write a sorted set of layers: ``at every layer``, ``at layers 3 and up``, ``at every sixth layer from 5``."""
    if len(chosen) == 1:
        return f"at layer {chosen[0]}"
    if len(chosen) == layers:
        return "at every layer"
    gaps = {b - a for a, b in pairwise(chosen)}
    if gaps == {1} and chosen[-1] == layers - 1:
        return f"at layers {chosen[0]} and up"
    if gap := _regular(chosen, layers):
        return f"at every {ORDINALS[gap]} layer from {chosen[0]}"
    missing = sorted(set(range(layers)) - set(chosen))
    if gap := _regular(missing, layers):
        return f"at every layer but every {ORDINALS[gap]} from {missing[0]}"
    return f"at {_of_all(chosen, layers, 'layers')}"


def _regular(chosen: Sequence[int], layers: int) -> int | None:
    """The distance between layers that come regularly and up to the last one; None of others."""
    gaps = {b - a for a, b in pairwise(chosen)}
    if len(chosen) < REPEATS or len(gaps) > 1:
        return None
    (gap,) = gaps
    return gap if gap in ORDINALS and chosen[-1] + gap >= layers else None


def _of_steps(chosen: Sequence[int], steps: int, tokens: Sequence[int] = ()) -> str:
    if steps == 1 or len(chosen) == steps:
        return ""
    for phase, kind in (([n == 1 for n in tokens], "one token"), ([n > 1 for n in tokens], "several tokens")):
        if [step for step, meant in enumerate(phase) if meant] == list(chosen):
            only = len(chosen) == 1
            return f" of step {chosen[0]}, the only step of {kind}" if only else f" in steps of {kind}"
    if len(chosen) == 1:
        return f" of step {chosen[0]}"
    if list(chosen) == list(range(chosen[0], steps)):
        return f" from step {chosen[0]} on"
    return f" of {_of_all(chosen, steps, 'steps')}"


def _of_all(chosen: Sequence[int], size: int, noun: str) -> str:
    """Such as ``layers 0-2, 5`` and ``all layers but 2``."""
    written = spans(chosen, size)
    return (
        f"all {noun} but {written.removeprefix('all but ')}" if written.startswith("all but ") else f"{noun} {written}"
    )


MISSING, RUNS = 3, 4
"""How many indices ``all but`` names, and how many runs of indices a line has room for."""


def spans(indices: Sequence[int] | npt.NDArray[np.integer], size: int) -> str:
    """Write a set of indices for people: ``all``, ``all but 0``, ``3-5, 9``, ``0, 2, 4, … (31 of 64)``."""
    chosen = [int(i) for i in indices]
    if len(chosen) == size:
        return "all" if size > 1 else "0"
    missing = sorted(set(range(size)) - set(chosen))
    if len(missing) <= MISSING and len(chosen) > len(missing):
        return "all but " + ", ".join(map(str, missing))
    runs: list[tuple[int, int]] = []
    for i in chosen:
        if runs and i == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], i)
        else:
            runs.append((i, i))
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:RUNS])
    return shown if len(runs) <= RUNS else f"{shown}, … ({len(chosen)} of {size})"
