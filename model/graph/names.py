"""Names of a graph's nodes: what a node is called, by its own name, the weight that it reads, or its operation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from firstdiff.model.graph.nodes import Node

_OF_LAYER = re.compile(r"(.+?)-([0-9]{1,6})( .*)?")
_OF_CACHE = re.compile(r"(cache_[a-z_]+)_l([0-9]{1,6})( .*)?")
_OF_WEIGHT = re.compile(r"(?:[a-z]+\.)?blk\.([0-9]{1,6})\.(.+?)(?:\.weight)?")
_OF_MODEL = re.compile(r"([A-Za-z_0-9]+)\.weight")
_MISLEADING = re.compile(r"model\.layers\.\{\}")  # of lfm2, whose ffn_out is the norm before
_UNNAMED = re.compile(r"(?:node|leaf)_[0-9]+|model\.embed_tokens|")
_UNSAFE = re.compile(r"[^\x21-\x7e]|[/\\@]")
_DERIVED = re.compile(r".*\((?:view|reshaped|permuted|transposed|cont|copy)[^)]*\)|")

OUTSIDE = frozenset(
    ("embd", "inp_embd", "inp_scaled", "pos_embd", "inpL", "inp_norm", "result_norm", "result_embd", "result_output")
)
"""What lies outside the layers, and says no layer."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a node is called.

    Parameters
    ----------
    point, layer
        Its name, and the layer that it says.
    own
        Whether llama.cpp gave it the name, and not firstdiff, by its weight or operation.
    op
        What it is told apart by where another node has the same name.
    weighted
        Whether it reads a weight of a layer.
    """

    point: str
    layer: int | None
    own: bool
    op: str
    weighted: bool = False


def name_of(node: Node) -> Name:
    """A node's name: its own; for one without, that of the weight it reads, or its operation."""
    name = node.tensor.name
    read = (source.name for source in node.sources if source is not None)
    of = next((found for each in read if (found := _OF_WEIGHT.fullmatch(each)) is not None), None)
    weighted, said = of is not None, None
    for pattern in (_OF_LAYER, _OF_CACHE):
        if (found := pattern.fullmatch(name)) is not None:
            if _MISLEADING.match(found[1]) is None:
                return Name(_safe(found[1]), int(found[2]), True, node.op, weighted)
            name, said = "", int(found[2])
    layer = said if of is None else int(of[1])
    if not _UNNAMED.fullmatch(name):
        return Name(_safe(name), layer, True, node.op, weighted)
    whole = next((found[1] for s in node.sources if s is not None and (found := _OF_MODEL.fullmatch(s.name))), None)
    point = (whole or node.op.lower()) if of is None else _safe(of[2])
    return Name(point, layer, False, node.op, weighted)


def is_own(name: str) -> bool:
    """Whether llama.cpp gave a tensor its name on purpose, and did not make it of another one's, or of a number."""
    return not _UNNAMED.fullmatch(name) and not _DERIVED.fullmatch(name)


def _safe(name: str) -> str:
    """A name that a terminal and a site's key can have."""
    name = _UNSAFE.sub("_", name)[:200]
    return re.sub(r"-(?=[0-9]+$)", "_", name)


def told_apart(names: Sequence[Name]) -> list[tuple[str, int | None]]:
    """A name and a layer for each of a step's nodes, no two alike.

    What says no layer belongs to that of the next node that does. Of a product, its scale and its bias the last has the
    name, and llama.cpp's own names go before those by weight. Another node of a name has its operation behind it
    (``Qcur_rope``), or its number where it is the same one.
    """
    layer: int | None = None
    layers: list[int | None] = []
    for name in reversed(names):
        layer = name.layer if name.layer is not None else layer
        layers.append(name.layer if name.layer is not None or name.point in OUTSIDE else layer)
    layers.reverse()
    first: dict[tuple[str, int | None], int] = {}
    for number, (name, of) in enumerate(zip(names, layers, strict=True)):
        key = name.point, of
        if key not in first or _goes_before(name, names[first[key]]):
            first[key] = number
    taken = set(first)
    places: list[tuple[str, int | None]] = []
    for number, (name, of) in enumerate(zip(names, layers, strict=True)):
        point, count = name.point, 1
        if first[point, of] != number:
            stem = point if names[first[point, of]].op == name.op else f"{point}_{name.op.lower()}"
            while (point, of) in taken:
                point, count = (stem if count == 1 else f"{stem}_{count}"), count + 1
            taken.add((point, of))
        places.append((point, of))
    return places


def _goes_before(name: Name, other: Name) -> bool:
    """Whether a node that comes after another of its name has the better right to it."""
    if name.own != other.own:
        return name.own
    return name.weighted and other.weighted and {name.op, other.op} <= {"MUL_MAT", "MUL", "ADD"}
