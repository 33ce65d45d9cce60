"""Rows: which tokens' rows a recorded tensor holds, where these are not the rows of the step's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import POINTS, token_axis
from firstdiff.judging.readers import Read, Shape
from firstdiff.model.arithmetic import Array
from firstdiff.model.attention import looked_at
from firstdiff.model.probe import Call

Mask = npt.NDArray[np.bool_]


class Rows(StrEnum):
    """Where the rows that count lie: among more rows than there are tokens, or among the tokens where rows lack."""

    FIRST = "first"
    LAST = "last"


def usual(rows: int, tokens: int, so_far: int, *, fixed: bool) -> Rows:
    """What rows are most likely those of a step's `tokens`, of `so_far` tokens in all steps up to it.

    Fewer rows are those of the last tokens. More rows are those of the whole sequence, or else a buffer whose first
    rows count: one of a `fixed` size is no sequence.
    """
    return Rows.LAST if rows < tokens or (tokens < so_far == rows and not fixed) else Rows.FIRST


def held(x: Array, read: Read, shape: Shape, axes: Sequence[str], width: int = 0) -> int | None:
    """How many rows a recorded tensor has, where its other axes are those of `shape`; None where they are not.

    Parameters
    ----------
    x, read, shape
        The tensor, a reader, and the shape that the step's tokens would have.
    axes
        Names of the axes of `shape`.
    width
        How many numbers a row has in `x`; 0 for as many as `shape` has.
    """
    axis = token_axis(axes)
    each = width or int(np.prod(shape)) // max(shape[axis], 1)
    rows = [x.size // each] if each and x.size % each == 0 else []
    rows += sorted({n for n in x.shape if n not in rows})  # columns, or keys, may be padded as well
    return next((n for n in rows if n > 0 and read(x, with_rows(shape, axes, n)) is not None), None)


def partly(x: Array, read: Read, shape: Shape, axes: Sequence[str], width: int = 0) -> tuple[Array, int] | None:
    """A tensor of other rows than the step's tokens, read with as many rows as it has, and how many these are.

    Parameters are those of :func:`held`. None where it does not fit that way either.
    """
    rows = held(x, read, shape, axes, width)
    part = None if rows is None else read(x, with_rows(shape, axes, rows))
    return None if rows is None or part is None else (part, rows)


def with_rows(shape: Shape, axes: Sequence[str], rows: int) -> Shape:
    """A shape with another number of rows."""
    axis = token_axis(axes)
    return (*shape[:axis], rows, *shape[axis + 1 :])


def placed(x: Array, like: Array, axes: Sequence[str], which: Rows) -> tuple[Array, Mask | None]:
    """Rows that are recorded, in the place of the step's own.

    Parameters
    ----------
    x
        As `like`, but for the number of rows.
    like
        What the rows that are not recorded are taken from.
    axes
        Names of the axes.
    which
        Where the rows that count lie.

    Returns
    -------
    All rows, and a mask of those that are recorded, broadcastable; None for all of them.
    """
    axis = token_axis(axes)
    recorded, tokens = x.shape[axis], like.shape[axis]
    few = min(recorded, tokens)
    part = slice(0, few) if which is Rows.FIRST else slice(-few, None)
    cut = [slice(None)] * x.ndim
    cut[axis] = part
    if recorded >= tokens:
        return x[tuple(cut)], None
    whole = np.array(like, dtype=np.result_type(x, like))
    whole[tuple(cut)] = x
    mask = np.zeros(tokens, bool)
    mask[part] = True
    return whole, along(mask, axes)


def along(mask: Mask, axes: Sequence[str]) -> Mask:
    """A mask of tokens, broadcastable to the axes."""
    axis = token_axis(axes)
    return mask.reshape([-1 if i == axis else 1 for i in range(len(axes))])


def both(a: Mask | None, b: Mask | None) -> Mask | None:
    """What two masks show, broadcast together; None for all."""
    return b if a is None else a if b is None else a & b


def of_rows(x: Array, rows: Mask | None, axes: Sequence[str]) -> Array:
    """Some rows of a tensor; `rows` is None for all."""
    return x if rows is None else np.compress(rows, x, axis=token_axis(axes))


def shown(seen: Mask | None) -> npt.NDArray[np.int64] | None:
    """The tokens that count, where a mask hides whole ones along its first axis; None for any other mask."""
    if seen is None or seen.size != len(seen) or seen.all():
        return None
    return np.flatnonzero(seen)


def hidden(call: Call) -> Mask | None:
    """Which scores or probabilities a call's mask hides; None where it only hides the future."""
    mask = call.argument("mask")
    return None if mask is None else ~np.isfinite(mask)


def counted(point: str, computed: Array, call: Call | None = None) -> Mask | None:
    """Which entries of a point count: hidden scores do not; without its `call` those of the future are hidden."""
    if point not in POINTS or not POINTS[point].hidden or computed.ndim != 3:  # noqa: PLR2004 - [H, T, S]
        return None
    return looked_at(computed.shape, None if call is None else call.argument("mask"))
