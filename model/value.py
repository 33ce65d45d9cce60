"""Values: what a probe hands to an architecture, which can only hand them to the next probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from firstdiff.model.arithmetic import Array


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A handle on an array of the forward pass.

    A probe knows by the handle where an array comes from. An array that was sliced, added or copied between two probes
    would come from nowhere, so a handle refuses all of that: what is to be done with an array is an operation, given to
    the probe, with the point None where nobody records it. Probes subclass it to note what they know of the array.

    Parameters
    ----------
    array
        The array. Operations look into it, and probes; an architecture does not.
    """

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape

    def __len__(self) -> int:
        return len(self.array)

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:  # noqa: ANN401 - of any operator
        raise TypeError(
            "a value of the forward pass can only be handed to a probe: write what is done with it as an operation, "
            "probe(None, operation, value) where nobody records the result"
        )

    __getitem__ = __setitem__ = __iter__ = __array__ = __bool__ = __eq__ = __ne__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __abs__ = __invert__ = __float__ = __int__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = __rmatmul__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = __mod__ = __rmod__ = _refuse
    __array_ufunc__ = __array_function__ = _refuse

    __hash__ = object.__hash__
