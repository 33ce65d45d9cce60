"""``firstdiff points``: what can be dumped of a model, and under which name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firstdiff.commands.printing import print_result
from firstdiff.dumps import Step
from firstdiff.dumps.points import axes_of, token_axis
from firstdiff.engines.opening import Tier, open_reference
from firstdiff.model.engine import Model
from firstdiff.model.outline import Awaited, outline
from firstdiff.model.weights import Weight

TOKENS = 7
"""Tokens that the model is outlined with: a number that is hardly the size of anything else."""

_BLOCK = re.compile(r"blk\.[0-9]+\.")


@dataclass(slots=True)
class _Row:
    """A point that is alike in some layers: what makes it, its shape, and the weights that it reads."""

    point: str
    op: str
    shape: tuple[str, ...]
    reads: tuple[str, ...]
    layers: set[int] = field(default_factory=set)


def points_command(*, model: Path, tier: Tier | None = None) -> tuple[str, dict[str, Any], int]:
    """``firstdiff points``: every point of a model, in execution order, with its shape and the weights that it reads.

    Returns
    -------
    Text, JSON, and exit code.
    """
    from firstdiff.reports.words import runs

    opened = open_reference(model, tier=tier)
    rows = _rows(outline(opened, [Step(tuple(range(TOKENS)), tuple(range(TOKENS)))]))
    record = {
        "model": opened.gguf.path.name,
        "architecture": opened.architecture,
        "tier": opened.tier,
        "points": [
            {"point": r.point, "layers": sorted(r.layers), "op": r.op, "shape": list(r.shape), "reads": list(r.reads)}
            for r in rows
        ],
    }
    return _told(opened, rows, runs), record, 0


def _rows(calls: Sequence[Awaited]) -> list[_Row]:
    """The points, those that are alike put together."""
    found: dict[tuple[Any, ...], _Row] = {}
    for awaited in calls:
        call = awaited.call
        if not call.point:
            continue
        weights = [x for x in (*call.inputs, *call.attributes.values()) if isinstance(x, Weight)]
        reads = tuple(_BLOCK.sub("blk.{layer}.", w.name) for w in weights)
        shape = _shape(call.point, awaited.shape)
        key = call.point, call.op.__name__, shape, reads, call.layer is None
        row = found.setdefault(key, _Row(call.point, call.op.__name__, shape, reads))
        row.layers |= set() if call.layer is None else {call.layer}
    return list(found.values())


def _shape(point: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """A shape with the tokens as ``tokens``, and cached positions as ``positions``."""
    axes = axes_of(point, len(shape))
    tokens = token_axis(axes)
    keys = axes.index("key") if "key" in axes else None
    named = {tokens: "positions" if point in ("k_cache", "v_cache") else "tokens", keys: "positions"}
    return tuple(named.get(i, str(n)) if n == TOKENS else str(n) for i, n in enumerate(shape))


def _told(model: Model, rows: Sequence[_Row], runs: Callable[[Iterable[int]], str]) -> str:
    """The table, under what it is a table of."""
    by = (
        "firstdiff's own description of the architecture"
        if model.tier == "hand"
        else "the graph that llama.cpp runs (firstdiff does not describe this architecture itself)"
    )
    head = ("point", "layers", "shape", "made by", "of the weights")
    cells = [(r.point, runs(r.layers) or "-", f"[{', '.join(r.shape)}]", r.op, ", ".join(r.reads) or "-") for r in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    table = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *cells)]
    layer = next((r for r in rows if r.layers), None)
    name = "" if layer is None else f", such as {layer.point}-{min(layer.layers)}"
    said = f"{model.gguf.path.name}, architecture {model.architecture}, by {by}."
    advice = (
        f"Name a tensor after its point and its layer{name}. Dump as many as you like: what is not recorded is "
        "computed from what is."
    )
    return "\n".join([said, advice, "", *table])


def points(options: argparse.Namespace) -> int:
    """Print the points of a model."""
    return print_result(options, points_command(model=options.model, tier=options.tier))
