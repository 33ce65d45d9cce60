"""Nodes of llama.cpp's graph, each judged on what it read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from firstdiff.dumps import Site
from firstdiff.dumps.points import OUTSIDE
from firstdiff.engines.llamacpp_graph import Ran
from firstdiff.judging.floors import FLASH_F16, UNIT
from firstdiff.judging.measure import Difference, measure
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.errors import ModelError
from firstdiff.model.graph.nodes import Node, Numbers
from firstdiff.model.graph.products import scores
from firstdiff.model.graph.table import KERNELS, STATES, computed, operands
from firstdiff.verdict import Element, SiteVerdict, Status

AXES = ("token", "feature")
"""A node's numbers are measured row by row."""

_OF_LAYER = re.compile(r"(.+?)-([0-9]{1,6})( .*)?")
_OF_CACHE = re.compile(r"(cache_[a-z_]+)_l([0-9]{1,6})( .*)?")
_OF_WEIGHT = re.compile(r"(?:[a-z]+\.)?blk\.([0-9]{1,6})\.(.+?)(?:\.weight)?")
_UNNAMED = re.compile(r"(?:node|leaf)_[0-9]+|")
_UNSAFE = re.compile(r"[^\x21-\x7e]|[/\\@]")


def sites_of(step: int, nodes: Sequence[Node]) -> list[Site]:
    """A site for each node of a step.

    A node goes by its name (``Qcur-3``); one without a name by the weight that it reads (``attn_output-3``), or by its
    operation. What says no layer belongs to that of the next node that does. A second node of a name has its operation
    behind it (``Qcur_rope-3``), or its number where it is the same one.
    """
    named = [_named(node) for node in nodes]
    layer: int | None = None
    layers: list[int | None] = []
    for point, own in reversed(named):
        layer = own if own is not None else layer
        layers.append(own if own is not None or point in OUTSIDE else layer)
    taken: dict[tuple[str, int | None], str] = {}
    sites = []
    for node, (point, _), of in zip(nodes, named, reversed(layers), strict=True):
        first = taken.get((point, of))
        name = point if first in (None, node.op) else f"{point}_{node.op.lower()}"
        number = 1
        while (name if number == 1 else f"{name}_{number}", of) in taken:
            number += 1
        name = name if number == 1 else f"{name}_{number}"
        taken[name, of] = node.op
        sites.append(Site(step, of, name))
    return sites


def _named(node: Node) -> tuple[str, int | None]:
    """A node's name, and the layer that it says."""
    name = node.tensor.name
    for pattern in (_OF_LAYER, _OF_CACHE):
        if (found := pattern.fullmatch(name)) is not None:
            return _safe(found[1]), int(found[2])
    read = (source.name for source in node.sources if source is not None)
    of = next((found for name in read if (found := _OF_WEIGHT.fullmatch(name)) is not None), None)
    layer = None if of is None else int(of[1])
    if not _UNNAMED.fullmatch(name):
        return _safe(name), layer
    return (node.op.lower() if of is None else _safe(of[2])), layer


def _safe(name: str) -> str:
    """A name that a terminal and a site's key can have."""
    name = _UNSAFE.sub("_", name)[:200]
    return re.sub(r"-(?=[0-9]+$)", "_", name)


@dataclass
class NodeJudge:
    """Judges every node as soon as it has run; nothing is kept but what is found."""

    arithmetic: Arithmetic
    watch: Callable[[int, int | None], None] = lambda _step, _layer: None
    sites: list[SiteVerdict] = field(default_factory=list)
    _step: int = field(default=0, init=False)
    _layer: int | None = field(default=None, init=False)
    _found: list[tuple[Node, float, Difference | str]] = field(default_factory=list, init=False)

    def visit(self, ran: Ran) -> None:
        """Judge a node on what it read."""
        layer = _named(ran.node)[1]
        if layer is not None and layer != self._layer:
            self._layer = layer
            self.watch(self._step, layer)
        floor = self.floor(ran)
        try:
            self._found.append((ran.node, floor, local_difference(ran, self.arithmetic, floor)))
        except ModelError as e:
            self._found.append((ran.node, floor, str(e)))

    def finish(self) -> None:
        """End a step: its nodes are named, now that all are known."""
        sites = sites_of(self._step, [node for node, *_ in self._found])
        self.sites += [_verdict(site, *found) for site, found in zip(sites, self._found, strict=True)]
        self._step, self._layer, self._found = self._step + 1, None, []

    def floor(self, ran: Ran) -> float:
        """What a correct node stays below.

        Flash attention rounds scores that nobody sees, and an exponent's absolute error is its result's relative one.
        Where it adds up in f16, a sum may be rounded the other way.
        """
        own = self.arithmetic.floor
        if ran.node.op != "FLASH_ATTN_EXT":
            return own
        q, k, v = ran.inputs[0], ran.inputs[1], ran.node.sources[2]
        if v is not None and v.kind.name == "F16":
            return FLASH_F16
        assert isinstance(q, np.ndarray)
        assert isinstance(k, np.ndarray)
        return 2 * own + UNIT * float(np.abs(scores(q, k, scale=float(ran.node.number(0)))).max())


def _verdict(site: Site, node: Node, floor: float, found: Difference | str) -> SiteVerdict:
    op = node.op.lower()
    if isinstance(found, str):
        return SiteVerdict(site, op, Status.NOT_COMPARABLE, reason=found)
    status = Status.AGREES if found.error <= floor else Status.DIVERGES
    worst = None if status is Status.AGREES else found.worst
    return SiteVerdict(site, op, status, found.error, floor, worst=worst, not_finite=found.not_finite)


def local_difference(ran: Ran, arithmetic: Arithmetic, floor: float) -> Difference:
    """How far a node's result is from the reference's on the same inputs, row by row.

    Of places it is asked whether the numbers there are the same.

    Raises
    ------
    ModelError
        For an operation or a type that is not known.
    """
    expected = computed(ran.node, ran.inputs, arithmetic)
    if not ran.output.size:
        return Difference(0.0, None, 0)
    kernel, inputs = KERNELS[ran.node.op], operands(ran.node, ran.inputs)
    if kernel.selects:
        alike = _selects_alike(inputs[0], ran.output, expected, ordered=ran.node.op != "TOP_K")
        return Difference(0.0 if alike else np.inf, None, 0)
    if ran.node.op in STATES:  # outputs, a row per token, and the states behind them: one small number decides nothing
        of = inputs[STATES[ran.node.op]]
        recorded, given = ran.output.reshape(-1), expected.reshape(-1)
        parts = ((slice(of.size), of.shape[-2] * of.shape[-1]), (slice(of.size, None), recorded.size - of.size))
        return max(
            (
                measure(recorded[at].reshape(-1, width), given[at].reshape(-1, width), axes=AXES, floor=floor)
                for at, width in parts
            ),
            key=lambda found: found.error,
        )

    def terms() -> Array | None:
        if kernel.sizes is None:
            return None
        size = kernel.sizes(*inputs, arithmetic=arithmetic, **kernel.attributes(ran.node))
        return np.broadcast_to(size, ran.output.shape).reshape(-1, ran.output.shape[-1])

    width = ran.output.shape[-1]
    theirs, ours = ran.output.reshape(-1, width), expected.reshape(-1, width)
    hidden = ~np.isfinite(ours) & ((theirs == ours) | (np.isnan(theirs) & np.isnan(ours)))
    if hidden.any():
        theirs, ours = np.where(hidden, 0, theirs), np.where(hidden, 0, ours)
    found = measure(theirs, ours, axes=AXES, floor=floor, terms=terms)
    return found if found.worst is None else _in_tensor(found, ran.output.shape)


def _in_tensor(found: Difference, shape: tuple[int, ...]) -> Difference:
    """The same with the worst element's place in the tensor, slowest axis first, without leading axes of one."""
    assert found.worst is not None
    row, column = found.worst.index
    index = [*map(int, np.unravel_index(row, shape[:3])), column]
    first = next((i for i, n in enumerate(shape[:2]) if n > 1), 2)
    place = tuple(index[first:])
    return Difference(found.error, Element(place, found.worst.candidate, found.worst.reference), found.not_finite)


def _selects_alike(x: Numbers, one: Numbers, other: Numbers, *, ordered: bool) -> bool:
    """Whether two selections pick the same numbers, in the same order where that is asked."""
    first, second = (np.take_along_axis(x, places.astype(np.int64), -1) for places in (one, other))
    if not ordered:
        first, second = np.sort(first, -1), np.sort(second, -1)
    return np.array_equal(first, second)
