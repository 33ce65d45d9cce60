"""An array whose axes have names, as ``trace["Kcur_rope", 3]`` gives it."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from firstdiff.dumps.points import axes_of, token_axis


class NamedArray(np.ndarray[Any, np.dtype[Any]]):
    """A numpy array with the names of its axes.

    What is cut out of it keeps the names of the axes that are left. What is computed from it has none, as its axes may
    be others.

    Parameters
    ----------
    values
        The array, which is not copied.
    axes
        One name an axis.

    Examples
    --------
    >>> x = NamedArray(np.zeros((5, 3, 64)), ("token", "head", "head_dim"))
    >>> x[-1].axes
    ('head', 'head_dim')
    >>> x.axis("head")
    1
    >>> x.mean(x.axis("head")).shape
    (5, 64)
    """

    axes: tuple[str, ...]

    def __new__(cls, values: npt.ArrayLike, axes: Sequence[str]) -> Self:
        """View the values as an array with names."""
        named = np.asarray(values).view(cls)
        if len(axes) != named.ndim:
            raise ValueError(f"{len(axes)} names {tuple(axes)} for an array of shape {list(named.shape)}")
        named.axes = tuple(axes)
        return named

    def __array_finalize__(self, source: object) -> None:
        self.axes = ()

    def axis(self, name: str) -> int:
        """Return the number of an axis, for numpy's ``axis=``."""
        if name not in self.axes:
            raise ValueError(f"there is no axis {name!r}, only {', '.join(self.axes) or 'axes without names'}")
        return self.axes.index(name)

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - as numpy's
        found = super().__getitem__(key)
        if isinstance(found, NamedArray) and self.axes:
            found.axes = _left(self.axes, key if isinstance(key, tuple) else (key,))
        return found

    def __repr__(self) -> str:
        plain = repr(np.asarray(self))
        if not self.axes:
            return plain
        shape = ", ".join(f"{name} {size}" for name, size in zip(self.axes, self.shape, strict=True))
        return f"{plain}\n[{shape}]"


def fitting_axes(point: str, shape: Sequence[int], tokens: int, stated: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return names for the axes of a recorded tensor, and numbers where the shape does not fit them.

    Parameters
    ----------
    point
        Whose tensor it is.
    shape
        As recorded.
    tokens
        Of its step; of a cache, all so far.
    stated
        What the trace's manifest says of the point.
    """
    names = tuple(stated or axes_of(point))
    if len(shape) == 2 and len(names) == 3 and names[0] == "token":  # noqa: PLR2004 - heads merged
        names = axes_of(point, 2)
    fits = len(shape) == len(names)
    if fits and ({"token", "query"}.isdisjoint(names) or shape[token_axis(names)] == tokens):
        return names
    return tuple(f"axis {i}" for i in range(len(shape)))


def _left(axes: tuple[str, ...], keys: tuple[object, ...]) -> tuple[str, ...]:
    """Names of what an index leaves; none where it is no matter of whole axes."""
    if any(not isinstance(k, slice | SupportsIndex | EllipsisType) or isinstance(k, bool | np.bool_) for k in keys):
        return ()
    if any(isinstance(k, np.ndarray) for k in keys):
        return ()
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys = (*keys[:at], *[slice(None)] * (len(axes) - len(keys) + 1), *keys[at + 1 :])
    keys = (*keys, *[slice(None)] * (len(axes) - len(keys)))
    return tuple(name for name, key in zip(axes, keys, strict=True) if isinstance(key, slice))
