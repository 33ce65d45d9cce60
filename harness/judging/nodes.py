"""Nodes of llama.cpp's graph, each judged on what it read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from firstdiff.dumps import Site
from firstdiff.engines.llamacpp_graph import Ran
from firstdiff.judging.case import DOUBTFUL
from firstdiff.judging.floors import FLASH_F16, MOST, UNIT
from firstdiff.judging.measure import Difference, measure
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.errors import ModelError
from firstdiff.model.graph.attention import adds_in_f16, scores
from firstdiff.model.graph.names import name_of, told_apart
from firstdiff.model.graph.nodes import Node, Numbers
from firstdiff.model.graph.table import KERNELS, STATES, computed, operands
from firstdiff.verdict import Element, SiteVerdict, Status

AXES = ("token", "feature")
"""A node's numbers are measured row by row."""

THREE = 3  # scores, softmax, and what is attended to


def sites_of(step: int, nodes: Sequence[Node]) -> list[Site]:
    """A site for each node of a step."""
    return [Site(step, layer, point) for point, layer in told_apart([name_of(node) for node in nodes])]


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
        layer = name_of(ran.node).layer
        if layer is not None and layer != self._layer:
            self._layer = layer
            self.watch(self._step, layer)
        self._found.append((ran.node, *self._judged(ran)))

    def _judged(self, ran: Ran) -> tuple[float, Difference | str]:
        """The floor of a node, and how far it is off; or why it cannot be judged."""
        if ran.unread:
            return self.arithmetic.floor, ran.unread
        try:
            with np.errstate(all="ignore"):  # NaN and infinities are judged, not warned of
                floor = self.floor(ran)
                return floor, local_difference(ran, self.arithmetic, floor)
        except ModelError as e:
            return self.arithmetic.floor, str(e)
        except (ValueError, IndexError, KeyError) as e:  # of shapes and types that no graph of ours has shown yet
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            return self.arithmetic.floor, f"firstdiff cannot compute this {ran.node.op}: {reason:.100}"

    def finish(self) -> None:
        """End a step: its nodes are named, now that all are known."""
        sites = sites_of(self._step, [node for node, *_ in self._found])
        self.sites += [_verdict(site, *found) for site, found in zip(sites, self._found, strict=True)]
        self._step, self._layer, self._found = self._step + 1, None, []

    def floor(self, ran: Ran) -> float:
        """What a correct node stays below.

        Flash attention is three operations, whose results between nobody sees: it has the floor of such a segment. An
        exponent's absolute error is its result's relative one.
        Where it adds up in f16, a sum may be rounded the other way.
        """
        own, node = self.arithmetic.floor, ran.node
        if node.op != "FLASH_ATTN_EXT" or not ran.output.size:
            return own
        attributes = KERNELS[node.op].attributes(node)
        q, k, _, mask, *_ = (*operands(node, ran.inputs), None)
        if adds_in_f16(q.shape[2], attributes["keys"], attributes["values"], self.arithmetic):
            return FLASH_F16
        s = scores(q, k, mask, arithmetic=self.arithmetic, **attributes)
        return min(MOST, 2 * THREE * own + UNIT * float(np.abs(s[np.isfinite(s)]).max(initial=0.0)))


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
        For an operation or a type that is not known, and where an input is NaN, which is passed on or not as the
        processor has it.
    """
    if not ran.output.size:
        return Difference(0.0, None, 0)
    inputs = operands(ran.node, ran.inputs)
    expected = computed(ran.node, inputs, arithmetic)
    kernel = KERNELS[ran.node.op]
    if kernel.selects:
        alike = _selects_alike(inputs[0], ran.output, expected, ordered=ran.node.op != "TOP_K")
        return Difference(0.0 if alike else np.inf, None, 0)

    def terms() -> Array | None:
        if kernel.sizes is None:
            return None
        size = kernel.sizes(*inputs, arithmetic=arithmetic, **kernel.attributes(ran.node))
        return size if ran.node.op in STATES else np.broadcast_to(size, ran.output.shape)

    if ran.node.op not in STATES:
        found = _by_row(ran.output, expected, ran.output.shape[-1], floor, terms)
        if floor < found.error <= DOUBTFUL * floor:  # perhaps it is ours: float32 sums of large terms err as well
            exact = computed(ran.node, inputs, arithmetic.exact)
            found = _by_row(ran.output, exact, ran.output.shape[-1], floor, terms)
        _refuse_nan(found, inputs)
        return found if found.worst is None else _in_tensor(found, ran.output.shape)
    # Outputs are a row per token, and states one per head: a single small number would decide nothing.
    outputs, states = (inputs[place] for place in STATES[ran.node.op])
    n, theirs, ours = outputs.size, ran.output.reshape(-1), expected.reshape(-1)
    head = states.size // (outputs.shape[2] * max(1, states.size // max(1, theirs.size - n)))
    parts = (
        _by_row(theirs[:n], ours[:n], outputs.shape[-2] * outputs.shape[-1], floor, terms),
        _by_row(theirs[n:], ours[n:], head if head and (theirs.size - n) % head == 0 else theirs.size - n, floor),
    )
    return max(parts, key=lambda found: found.error)


def _by_row(
    theirs: Numbers, ours: Numbers, width: int, floor: float, terms: Callable[[], Array | None] = lambda: None
) -> Difference:
    """Measure rows of so many numbers. What is the same infinity in both, or NaN, is the same."""
    theirs, ours = theirs.reshape(-1, width), ours.reshape(-1, width)
    odd = ~np.isfinite(ours)
    if odd.any():
        wrong = odd & (theirs != ours) & ~(np.isnan(theirs) & np.isnan(ours))
        if wrong.any():
            row, column = (int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
            element = Element((row, column), float(theirs[row, column]), float(ours[row, column]))
            return Difference(np.inf, element, int(wrong.sum()))
        theirs, ours = np.where(odd, 0, theirs), np.where(odd, 0, ours)

    def sizes() -> Array | None:
        size = terms()
        return None if size is None else size.reshape(-1, width)

    return measure(theirs, ours, axes=AXES, floor=floor, terms=sizes)


def _refuse_nan(found: Difference, inputs: Sequence[object]) -> None:
    """Judge nothing that is infinitely far off where an input is NaN."""
    floats = (x for x in inputs if isinstance(x, np.ndarray) and x.dtype.kind == "f")
    if found.error == np.inf and any(np.isnan(x).any() for x in floats):
        raise ModelError("an input is NaN, and what comes of that depends on the processor")


def _in_tensor(found: Difference, shape: tuple[int, ...]) -> Difference:
    """The same with the worst element's place in the tensor, slowest axis first, without leading axes of one."""
    assert found.worst is not None
    row, column = found.worst.index
    index = [*map(int, np.unravel_index(row, shape[:3])), column]
    first = next((i for i, n in enumerate(shape[:2]) if n > 1), 2)
    place = tuple(index[first:])
    return Difference(found.error, Element(place, found.worst.candidate, found.worst.reference), found.not_finite)


def _selects_alike(x: Numbers, one: Numbers, other: Numbers, *, ordered: bool) -> bool:
    """Whether a selection picks each place once and the same numbers, in the same order where that is asked."""
    if one.min() < 0 or one.max() >= x.shape[-1]:
        return False
    places = np.sort(one, -1)
    if (places[..., 1:] == places[..., :-1]).any():
        return False
    first, second = (np.take_along_axis(x, at.astype(np.int64), -1) for at in (one, other))
    if not ordered:
        first, second = np.sort(first, -1), np.sort(second, -1)
    return np.array_equal(first, second, equal_nan=x.dtype.kind == "f")
