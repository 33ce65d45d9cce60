"""Dumps that do not hold what the engine computed, whatever the engine is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from firstdiff.dumps import Site, Trace
from firstdiff.verdict import Verdict

PROMPT = (1, *range(300, 311))
"""What the engine ran whose dumps are made wrong."""

Held = Callable[[Trace, Site], Site | None]


def held_instead(trace: Trace, held: Held) -> Trace:
    """The trace with another of its tensors at some sites: those for which `held` names one that there is."""
    tensors = {}
    for site in trace:
        other = held(trace, site) or site
        tensors[site] = np.array(trace[other if other in trace else site])
    return Trace.from_arrays(
        trace.steps, tensors, engine=trace.engine, model={}, names=trace.names, layouts=trace.layouts
    )


def another_layer(layers: Mapping[int, int]) -> Held:
    """Some layers hold another one's tensors."""
    return lambda _, s: None if s.layer not in layers else Site(s.step, layers[s.layer], s.point)


def another_step(now: int, before: int) -> Held:
    """A step repeats the tensors of an earlier one."""
    return lambda _, s: Site(before, s.layer, s.point) if s.step == now else None


def another_point(points: Mapping[str, tuple[str, int]], layers: range | None = None) -> Held:
    """Points hold what another point is, so many layers further on; before the first layer it is ``embd``."""

    def held(_trace: Trace, site: Site) -> Site | None:
        if site.point not in points or site.layer is None or (layers is not None and site.layer not in layers):
            return None
        point, further = points[site.point]
        if site.layer + further < 0:
            return Site(site.step, None, "embd")
        return Site(site.step, site.layer + further, point)

    return held


BRANCH = another_point({"l_out": ("ffn_out", 0)})
PAIR = another_point({"l_out": ("ffn_out", 0), "ffn_inp": ("attn_out", 0)})
BEFORE = another_point({"l_out": ("l_out", -1)})
NORMED = another_point({"l_out": ("attn_norm", 1), "ffn_inp": ("ffn_norm", 0)})
"""A branch instead of the sum, both branches, a layer's input as its output, sums after the next norm."""


def named(verdict: Verdict) -> list[str]:
    """The kinds of what is found in a dump."""
    return [finding.id for finding in verdict.dump]
