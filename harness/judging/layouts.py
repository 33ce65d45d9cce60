"""Layouts: how a candidate's tensors lie, and reading them as the reference has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from firstdiff.dumps import Site, Trace, TraceError
from firstdiff.dumps.points import Kind, axes_of, carrying, of_kind
from firstdiff.judging.measure import Mask
from firstdiff.judging.readers import (
    Read,
    Shape,
    columns_of,
    half_split,
    merged_last,
    moved,
    padded,
    per_group,
    plain,
    repeated,
    side_by_side,
)
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model


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
    unscaled
        Of a layout of values times 1 / sqrt(head_dim): the same without this factor.
    """

    says: str
    read: Read
    source: str | None = None
    unscaled: Layout | None = None


@dataclass(frozen=True, slots=True)
class Alignment:
    """The layout taken for each point; plain where nothing else is said."""

    layouts: dict[str, Layout] = field(default_factory=dict)

    def read(self, trace: Trace, site: Site, like: Array) -> tuple[Array | None, str | None]:
        """A site's tensor laid out as `like`; or None, with the reason if it is recorded and does not fit.

        Where only the last token's row is recorded, the others are taken from `like`: :meth:`read_rows` tells.
        """
        recorded, _, reason = self.read_rows(trace, site, like)
        return recorded, reason

    def read_rows(self, trace: Trace, site: Site, like: Array) -> tuple[Array | None, Mask | None, str | None]:
        """As :meth:`read`, with the rows that are recorded [token, 1] between the two; None for all."""
        layout = self.layouts.get(site.point, PLAIN)
        held = Site(site.step, site.layer, layout.source or site.point)
        if held not in trace:
            return None, None, None
        recorded = trace[held]
        fitted = layout.read(recorded, like.shape)
        if fitted is not None:
            return fitted, None, None
        row = _last_row(layout, recorded, like.shape)
        if row is None:
            return None, None, f"recorded shape {list(recorded.shape)}, expected {list(like.shape)}"
        return np.concatenate([like[:-1], row]), np.arange(len(like))[:, None] == len(like) - 1, None

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
            recorded, _ = Alignment({site.point: layout.unscaled}).read(trace, site, value)
            if recorded is not None and np.isfinite(recorded).all():
                return recorded
        return np.asarray(value * value.dtype.type(value.shape[-1] ** -0.5))

    def dtype(self, trace: Trace, site: Site) -> str:
        """The dtype that a site's tensor was recorded in."""
        layout = self.layouts.get(site.point, PLAIN)
        return trace.dtype(Site(site.step, site.layer, layout.source or site.point))

    def described(self) -> dict[str, str]:
        """What is said of each point that is not laid out plainly."""
        return {point: layout.says for point, layout in self.layouts.items() if layout.says}


def _last_row(layout: Layout, x: Array, shape: Shape) -> Array | None:
    """The last token's row [1, feature], where it alone is recorded; None where it is not."""
    if len(shape) != 2:  # noqa: PLR2004 - [token, feature]
        return None
    one = (1, shape[1])
    return x.reshape(one) if x.size == shape[1] else layout.read(x, one)


def scaled_layout(layout: Layout, head_dim: int) -> Layout:
    """The same layout, of values that were multiplied by the softmax's scale as an engine rounds it."""

    def read(x: Array, shape: Shape) -> Array | None:
        y = layout.read(x, shape)
        with np.errstate(all="ignore"):
            return None if y is None else y / y.dtype.type(head_dim**-0.5)

    says = f"{layout.says}, {SCALED}" if layout.says else SCALED
    return Layout(says, read, layout.source, unscaled=layout)


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
QUERIES = carrying("Q")
"""Points that may hold the softmax's scale already. An engine that multiplies Q by it has it in all that follow."""


def candidates(point: str, model: Model) -> Iterator[Layout]:
    """Ways in which a point may be laid out, the likeliest first."""
    yield PLAIN
    axes = axes_of(point)
    if "head_dim" in axes:
        yield from _of_heads(point, model)
    elif "query" in axes:
        yield Layout("[query, head, key]", moved(1, 0, 2))
        yield Layout("[key, query, head]", moved(2, 1, 0))
        yield Layout("padded to more keys than there are", padded)
    else:
        yield Layout("[feature, token]", merged_last)
    if point in ("ffn_gate", "ffn_up"):
        first, hp = point == "ffn_gate", model.hp
        half = columns_of(0, hp.n_ff) if first else columns_of(hp.n_ff, 2 * hp.n_ff)
        other = columns_of(hp.n_ff, 2 * hp.n_ff) if first else columns_of(0, hp.n_ff)
        yield Layout("from the fused gate and up, gate first", half, "ffn_gate_up")
        yield Layout("from the fused gate and up, up first", other, "ffn_gate_up")


def _of_heads(point: str, model: Model) -> Iterator[Layout]:
    orders: tuple[tuple[str, Read], ...] = (
        ("[token, head, head_dim]", plain),
        ("[head, token, head_dim]", moved(1, 0, 2)),
        ("[head_dim, head, token]", moved(2, 1, 0)),
        ("[feature, token]", merged_last),
    )
    if point in carrying("K", "V"):
        orders += tuple((f"{says}, KV heads repeated", repeated(read, model.hp.n_head)) for says, read in orders[:2])
    yield from (Layout(says, read) for says, read in orders[1:])
    if point in ROTATED and model.rotation is not None:
        of, reorder = OTHER_ORDERS[model.rotation.pairing]
        yield from (Layout(of if read is plain else f"{says}, {of}", reorder(read)) for says, read in orders)
    if point in ("Qcur", "Kcur", "Vcur"):
        yield from _fused(point, model)


def _fused(point: str, model: Model) -> Iterator[Layout]:
    hp = model.hp
    q, kv, d, group = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim, hp.head_dim, hp.n_head // hp.n_head_kv
    blocks = {"Qcur": (0, q), "Kcur": (q, q + kv), "Vcur": (q + kv, q + 2 * kv)}[point]
    part = {
        "Qcur": slice(0, group * d),
        "Kcur": slice(group * d, (group + 1) * d),
        "Vcur": slice((group + 1) * d, None),
    }
    for says, read in (
        ("from the fused product, blocks of Q, K and V", columns_of(*blocks)),
        ("from the fused product, interleaved by KV head", per_group(part[point], (group + 2) * d)),
    ):
        yield Layout(says, read, "wqkv")
        if point in ROTATED and model.rotation is not None:
            of, reorder = OTHER_ORDERS[model.rotation.pairing]
            yield Layout(f"{says}, {of}", reorder(read), "wqkv")


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
    return layout is not None and any(of in layout.says for of, _ in OTHER_ORDERS.values())


def is_scaled(layout: Layout | None) -> bool:
    """Whether a layout is of values that the candidate has multiplied by the softmax's scale."""
    return layout is not None and layout.unscaled is not None
