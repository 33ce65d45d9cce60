"""Layouts: how a candidate's tensors lie, and reading them as the reference has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from firstdiff.dumps import Site, Trace, TraceError
from firstdiff.dumps.points import Kind, axes_of, carrying, of_kind, token_axis
from firstdiff.judging.readers import (
    Read,
    Shape,
    half_split,
    moved,
    plain,
    reordered,
    side_by_side,
)
from firstdiff.judging.rows import Mask, Rows, held, partly, placed, usual
from firstdiff.model.arithmetic import Array


@dataclass(frozen=True, slots=True)
class Layout:
    """One way of laying a point out.

    Parameters
    ----------
    says
        In words, for the verdict; empty for the plain one.
    read
        Gives the recorded tensor as the reference has it, or None where its shape does not fit the expected one.
    source
        The candidate's point that holds it, where that is another one (a fused product).
    width
        How many numbers a row has there, where they are not as many as the point's own; 0 for as many.
    pairing
        The reference's pairing, where the dimensions of each head stand in the order of the other one; else empty.
    unscaled
        Of a layout of values times 1 / sqrt(head_dim): the same without this factor.
    parts
        Of a part of a fused product: how its parts lie, which is the same for all of them.
    """

    says: str
    read: Read
    source: str | None = None
    width: int = 0
    pairing: str = ""
    unscaled: Layout | None = None
    parts: str = ""

    @property
    def reordered(self) -> bool:
        """Whether the dimensions of each head stand in another order than the reference has them in."""
        return bool(self.pairing)

    def there(self, x: Array) -> Array:
        """The reference's values with the dimensions of each head as the candidate has them."""
        return reordered(self.pairing, x) if self.pairing else x


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a trace's tensors lie.

    Parameters
    ----------
    layouts
        The layout of each point that is not laid out plainly.
    rows
        Where the rows that count lie, by point and number of rows; for any point under "".
        Where nothing is said it is as :func:`firstdiff.judging.rows.usual` says.
    """

    layouts: dict[str, Layout] = field(default_factory=dict)
    rows: dict[tuple[str, int], Rows] = field(default_factory=dict)

    def source(self, site: Site) -> Site:
        """The site of the recorded tensor that holds a site's values: of a part of a fused product, the whole one."""
        return Site(site.step, site.layer, self.layouts.get(site.point, PLAIN).source or site.point)

    def read(self, trace: Trace, site: Site, like: Array) -> tuple[Array | None, str | None]:
        """A site's tensor laid out as `like`; or None, with the reason if it is recorded and does not fit.

        Where only some rows are recorded, the others are taken from `like`: :meth:`read_rows` tells.
        """
        recorded, _, reason = self.read_rows(trace, site, like)
        return recorded, reason

    def read_rows(
        self, trace: Trace, site: Site, like: Array, hidden: Mask | None = None
    ) -> tuple[Array | None, Mask | None, str | None]:
        """As :meth:`read`, with a mask of the recorded rows between the two, broadcastable; None for all.

        Of scores the `hidden` ones are those that a window hides: an engine whose cache has only what is in the window
        lacks the first keys, which are taken from `like`.
        """
        source = self.source(site)
        if source not in trace:
            return None, None, None
        layout, recorded = self.layouts.get(site.point, PLAIN), trace[source]
        lacking = like.shape[-1] - recorded.shape[-1] if recorded.ndim else 0
        if hidden is not None and lacking > 0 and hidden[..., :lacking].all():
            inside, rows, reason = self._placed(trace, site, layout, recorded, like[..., lacking:])
            if inside is not None:
                return np.concatenate([like[..., :lacking], inside], -1), rows, reason
        return self._placed(trace, site, layout, recorded, like)

    def _placed(
        self, trace: Trace, site: Site, layout: Layout, recorded: Array, like: Array
    ) -> tuple[Array | None, Mask | None, str | None]:
        fitted = layout.read(recorded, like.shape)
        if fitted is not None:
            return fitted, None, None
        axes = axes_of(site.point, like.ndim)
        found = partly(recorded, layout.read, like.shape, axes, layout.width)
        if found is None:
            return None, None, unfit(site, recorded.shape, like.shape)
        part, rows = found
        which = self._which(trace, site, rows, like.shape[token_axis(axes)])
        return *placed(part, like, axes, which), None

    def cut(self, trace: Trace, site: Site, shape: Shape) -> tuple[int, int, Rows] | None:
        """How many rows a recorded tensor has, how many tokens there are, and which rows count; None if as many.

        `shape` is what the tensor has in the reference's layout with all rows.
        """
        layout = self.layouts.get(site.point, PLAIN)
        recorded = trace.shape(self.source(site))
        empty = np.broadcast_to(np.float32(0), recorded)
        if layout.read(empty, shape) is not None:
            return None
        axes = axes_of(site.point, len(shape))
        rows, tokens = held(empty, layout.read, shape, axes, layout.width), shape[token_axis(axes)]
        return None if rows is None else (rows, tokens, self._which(trace, site, rows, tokens))

    def _which(self, trace: Trace, site: Site, rows: int, tokens: int) -> Rows:
        so_far = sum(len(step.tokens) for step in trace.steps[: site.step + 1])
        known = self.rows.get((site.point, rows)) or self.rows.get(("", rows))
        return known or usual(rows, tokens, so_far, fixed=self._is_fixed(trace, site))

    def _is_fixed(self, trace: Trace, site: Site) -> bool:
        """Whether a tensor is as large in the first step: the whole sequence's would grow."""
        now, first = (self.source(Site(step, site.layer, site.point)) for step in (site.step, 0))
        return site.step > 0 and first in trace and trace.shape(first) == trace.shape(now)

    def there(self, trace: Trace, site: Site, shape: Shape, index: tuple[int, ...]) -> tuple[int, ...] | None:
        """Where an element of a site's tensor lies in what the candidate recorded; None where that is the same place.

        `shape` is what the tensor has in the reference's layout, `index` the element's place there.
        """
        layout = self.layouts.get(site.point, PLAIN)
        recorded = trace.shape(self.source(site))
        places = np.arange(np.prod(recorded), dtype=np.float64).reshape(recorded)
        like = np.broadcast_to(np.float64(np.nan), shape)
        found, _, _ = self._placed(trace, site, layout.unscaled or layout, places, like)
        if found is None or np.isnan(found[index]):
            return None
        own = tuple(int(i) for i in np.unravel_index(int(found[index]), recorded))
        return None if own == index else own

    def shaped(self, trace: Trace, site: Site, shape: Shape) -> Array | None:
        """A site's tensor in the reference's layout, NaN in rows that are not recorded; None where it does not fit."""
        like = np.broadcast_to(np.float32(np.nan), shape)
        return self.read_rows(trace, site, like)[0]

    def scaled_query(self, trace: Trace, site: Site, value: Array) -> Array | None:
        """What the candidate feeds its scores in place of the rotated `value` [token, head, head_dim] of a site.

        As it is recorded, to the bit, where it is: an engine with narrow operands rounds that. None where it is `value`
        itself.
        """
        layout = self.layouts.get(site.point, PLAIN)
        if site.point != "Qcur_rope" or not any(is_scaled(self.layouts.get(point)) for point in QUERIES):
            return None
        if layout.unscaled is not None:
            recorded, _ = Alignment({site.point: layout.unscaled}, self.rows).read(trace, site, value)
            if recorded is not None and np.isfinite(recorded).all():
                return recorded
        return np.asarray(value * value.dtype.type(value.shape[-1] ** -0.5))

    def dtype(self, trace: Trace, site: Site) -> str:
        """The dtype that a site's tensor was recorded in."""
        return trace.dtype(self.source(site))

    def described(self) -> dict[str, str]:
        """What is said of each point that is not laid out plainly."""
        return {point: layout.says for point, layout in self.layouts.items() if layout.says}


def unfit(site: Site, recorded: Shape, expected: Shape) -> str:
    """Say that a tensor does not fit, and what that may be."""
    axes = axes_of(site.point, len(expected))
    says = f"recorded shape {list(recorded)}, expected {list(expected)}"
    squeezed = [n for n in recorded if n != 1]
    if axes[-1:] == ("key",) and squeezed and recorded[-1] < expected[-1]:
        keys = f"1 key where {expected[-1]}" if recorded[-1] == 1 else f"{recorded[-1]} keys where {expected[-1]}"
        return f"{says}: {keys} positions are in the cache"
    return says


def scaled_layout(layout: Layout, head_dim: int) -> Layout:
    """The same layout, of values that were multiplied by the softmax's scale as an engine rounds it."""

    def read(x: Array, shape: Shape) -> Array | None:
        y = layout.read(x, shape)
        with np.errstate(all="ignore"):
            return None if y is None else y / y.dtype.type(head_dim**-0.5)

    says = f"{layout.says}, {SCALED}" if layout.says else SCALED
    return replace(layout, says=says, read=read, unscaled=layout)


PLAIN = Layout("", plain)
HALF = "head dimensions in half-split order (Hugging Face's, before GGUF's conversion)"
PAIRS = "head dimensions in interleaved order (each pair side by side)"
OTHER_ORDERS: dict[str, tuple[str, Callable[[Read], Read]]] = {
    "interleaved": (HALF, half_split),
    "half": (PAIRS, side_by_side),
}
"""For each pairing of the reference, the order of head dimensions in which an engine pairs them the other way."""

ROTATED = carrying("Q", "K")
"""Points whose head dimensions are turned in pairs: each holds them in the order that the rotation pairs."""


SCALED = "values times 1 / sqrt(head_dim)"
SCORES = of_kind(Kind.SCORES)
LOGITS = of_kind(Kind.LOGITS)
QUERIES = carrying("Q")
"""Points that may hold the softmax's scale already. An engine that multiplies Q by it has it in all that follow."""


def stated(trace: Trace) -> Alignment:
    """The layouts that a trace's manifest states, as lists of axes.

    Raises
    ------
    TraceError
        For axes that a point does not have.
    """
    layouts = {}
    for point, given in trace.layouts.items():
        axes = axes_of(point)
        if sorted(given) != sorted(axes):
            raise TraceError(f"{trace.path}: layout of '{point}' has axes {list(given)}: its axes are {list(axes)}")
        if tuple(given) != axes:
            layouts[point] = Layout(f"[{', '.join(given)}]", moved(*(list(given).index(axis) for axis in axes)))
    return Alignment(layouts)


def is_reordered(layout: Layout | None) -> bool:
    """Whether a layout has the dimensions of each head in another order than the reference."""
    return layout is not None and layout.reordered


def is_scaled(layout: Layout | None) -> bool:
    """Whether a layout is of values that the candidate has multiplied by the softmax's scale."""
    return layout is not None and layout.unscaled is not None
