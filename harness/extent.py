"""Where the same thing happens, in words: ``Qcur_rope and Kcur_rope at every sixth layer from 5``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from firstdiff.dumps import Site
from firstdiff.measure import spans

ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh", 8: "eighth"}
REPEATS = 3  # layers from which a regular distance is a pattern


def extent(sites: Sequence[Site], layers: int, steps: int) -> str:
    """Say where sites are, of a run of so many layers and steps.

    Parameters
    ----------
    sites
        At least one, in execution order.
    layers, steps
        How many there are in all.
    """
    points = list(dict.fromkeys(s.point for s in sites))
    named = " and ".join([", ".join(points[:-1]), points[-1]] if len(points) > 1 else points)
    inside = sorted({s.layer for s in sites if s.layer is not None})
    where = f" {of_layers(inside, layers)}" if inside else ""
    in_steps = sorted({s.step for s in sites})
    return named + where + _of_steps(in_steps, steps)


def of_layers(chosen: Sequence[int], layers: int) -> str:
    """Write a sorted set of layers: ``at every layer``, ``at layers 3 and up``, ``at every sixth layer from 5``."""
    if len(chosen) == 1:
        return f"at layer {chosen[0]}"
    if len(chosen) == layers:
        return "at every layer"
    gaps = {b - a for a, b in pairwise(chosen)}
    if gaps == {1} and chosen[-1] == layers - 1:
        return f"at layers {chosen[0]} and up"
    if len(gaps) == 1 and len(chosen) >= REPEATS and (gap := gaps.pop()) in ORDINALS and chosen[-1] + gap >= layers:
        return f"at every {ORDINALS[gap]} layer from {chosen[0]}"
    missing = sorted(set(range(layers)) - set(chosen))
    between = {b - a for a, b in pairwise(missing)}
    if len(missing) >= REPEATS and len(between) == 1 and (gap := between.pop()) in ORDINALS and gap > 1:
        return f"at every layer but every {ORDINALS[gap]} from {missing[0]}"
    return f"at layers {spans(chosen, layers)}"


def _of_steps(chosen: Sequence[int], steps: int) -> str:
    if steps == 1 or len(chosen) == steps:
        return ""
    if len(chosen) == 1:
        return f" of step {chosen[0]}"
    if chosen == list(range(chosen[0], steps)):
        return f" from step {chosen[0]} on"
    return f" of steps {spans(chosen, steps)}"
