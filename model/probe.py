"""The probe: the one object that every operation of a forward pass goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Operation


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One operation of a forward pass, ready to be run, and to be run again."""

    step: int
    layer: int | None
    point: str
    op: Operation
    inputs: tuple[Any, ...]
    attributes: dict[str, Any]

    def compute(self, arithmetic: Arithmetic) -> Array:
        """Run the operation."""
        return arithmetic.keep(self.op(*self.inputs, arithmetic=arithmetic, **self.attributes))


def _unwatched(_step: int, _layer: int | None) -> None:
    """Nobody watches."""


@dataclass
class Probe:
    """Runs every operation and returns its value. What else a probe does, it does in :meth:`value`.

    An architecture calls it as ``probe("Qcur", linear, h, w["attn_q.weight"], heads=hp.n_head)``.
    `step` and `layer` are set by who drives the pass; `watch` is called with both whenever they have changed.
    """

    arithmetic: Arithmetic
    step: int = field(default=0, init=False)
    layer: int | None = field(default=None, init=False)
    watch: Callable[[int, int | None], None] = field(default_factory=lambda: _unwatched, init=False)
    _watched: tuple[int, int | None] | None = field(default=None, init=False)

    def __call__(self, point: str, op: Operation, *inputs: Any, **attributes: Any) -> Array:  # noqa: ANN401 - an operation's own
        """Run one operation of the forward pass and return the value to go on with."""
        if self._watched != (self.step, self.layer):
            self._watched = self.step, self.layer
            self.watch(self.step, self.layer)
        return self.value(Call(self.step, self.layer, point, op, inputs, attributes))

    def value(self, call: Call) -> Array:
        """Return the value that the forward pass goes on with."""
        return call.compute(self.arithmetic)
