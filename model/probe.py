"""The probe: the one object that every operation of a forward pass goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived, Operation, embed, parameters, rms_norm, rope
from firstdiff.model.value import Value
from firstdiff.model.weights import Weight


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One operation of a forward pass, ready to be run, and to be run again.

    Parameters
    ----------
    step, layer
        Where it stands; no layer for what lies outside the layers.
    point
        The name of its result; empty for a silent call, whose result nobody records.
    op, inputs, attributes
        What is computed: arrays, weights, tokens and positions, and keywords.
    sources
        For each input the value that holds it; None for an input that is not a value of the pass.
    order
        How many calls of the step came before it.
    """

    step: int
    layer: int | None
    point: str
    op: Operation
    inputs: tuple[Any, ...]
    attributes: dict[str, Any]
    sources: tuple[Value | None, ...] = ()
    order: int = 0
    _prepared: list[tuple[Arithmetic, Array]] = field(default_factory=list, init=False)

    def compute(self, arithmetic: Arithmetic) -> Array:
        """Run the operation, unless its result in this arithmetic was prepared."""
        if self._prepared and self._prepared[0][0] == arithmetic:
            y = self._prepared.pop()[1]
        else:
            call = self.held_in(arithmetic)
            y = self.op(*call.inputs, arithmetic=arithmetic, **call.attributes)
        return arithmetic.keep(y) if y.dtype.kind == "f" else y

    def prepared(self, arithmetic: Arithmetic, result: Array) -> None:
        """Take what the operation gives in an arithmetic: the call, and none that is made of it, is computed by it."""
        self._prepared[:] = [(arithmetic, result)]

    def held_in(self, arithmetic: Arithmetic) -> Call:
        """The call on weights as the engine holds them; itself where they are held so."""
        if arithmetic.holds_as_the_file:
            return self
        inputs = tuple(self._held(x, arithmetic) for x in self.inputs)
        attributes = {name: self._held(x, arithmetic) for name, x in self.attributes.items()}
        if all(
            a is b
            for a, b in zip((*inputs, *attributes.values()), (*self.inputs, *self.attributes.values()), strict=True)
        ):
            return self
        return replace(self, inputs=inputs, attributes=attributes)

    def _held(self, x: Any, arithmetic: Arithmetic) -> Any:  # noqa: ANN401 - an operation's own
        op = self.op.of if isinstance(self.op, Derived) else self.op
        if not isinstance(x, Weight) or op is rope:  # factors of frequencies are no weights of the network
            return x
        if op is embed:
            return x.held_in(arithmetic.embedding)
        if op is rms_norm:
            return x.held_in(arithmetic.norms)
        if len(x.shape) == 1:
            return x.held_in(arithmetic.biases)
        return x.held_in(arithmetic.output if self.layer is None else arithmetic.matrices)

    @property
    def arguments(self) -> dict[str, Any]:
        """Every operand and attribute by its name in the operation's signature, defaults included.

        An architecture may leave out an operand that has a default, or give it as a keyword.
        """
        named = parameters(self.op)
        return {**named, **dict(zip(named, self.inputs, strict=False)), **self.attributes}

    def argument(self, name: str) -> Any:  # noqa: ANN401 - an operation's own
        """One operand or attribute by its name; None for one that the operation does not have."""
        return self.arguments.get(name)

    def with_arguments(self, **arguments: Any) -> Call:  # noqa: ANN401
        """The call with some operands and attributes replaced, each by its name."""
        inputs, attributes = list(self.inputs), dict(self.attributes)
        places = {name: index for index, name in enumerate(parameters(self.op))}
        for name, value in arguments.items():
            if places.get(name, len(inputs)) < len(inputs):
                inputs[places[name]] = value
            else:
                attributes[name] = value
        return replace(self, inputs=tuple(inputs), attributes=attributes)

    def with_inputs(self, arrays: dict[Value, Array]) -> Call:
        """The call with other arrays in the place of some values."""
        if not any(source in arrays for source in self.sources if source is not None):
            return self
        inputs = (x if s is None else arrays.get(s, x) for s, x in zip(self.sources, self.inputs, strict=True))
        return replace(self, inputs=tuple(inputs))


Change = Callable[[Call], Call]
"""Makes a call as the engine does that has it wrong."""


def unchanged(call: Call) -> Call:
    """The call as it is: nothing is known to be wrong with it."""
    return call


def _unwatched(_step: int, _layer: int | None) -> None:
    """Nobody watches."""


@dataclass
class Probe:
    """Runs every operation and returns its value. What else a probe does, it does in :meth:`value`.

    An architecture calls it as ``probe("Qcur", linear, h, w["attn_q.weight"], heads=hp.n_head)``, and for an operation
    whose result nobody records (a cut, a gather) with None for the name. `step` and `layer` are set by who drives the
    pass; `watch` is called with both whenever they have changed.
    """

    arithmetic: Arithmetic
    step: int = field(default=0, init=False)
    layer: int | None = field(default=None, init=False)
    watch: Callable[[int, int | None], None] = field(default_factory=lambda: _unwatched, init=False)
    _watched: tuple[int, int | None] | None = field(default=None, init=False)
    _order: int = field(default=0, init=False)

    def __call__(self, point: str | None, op: Operation, *inputs: Any, **attributes: Any) -> Value:  # noqa: ANN401 - an operation's own
        """Run one operation of the forward pass and return the value to go on with.

        Raises
        ------
        TypeError
            For an input that is an array, and no value that a probe returned; for a value given as a keyword.
        """
        if self._watched != (self.step, self.layer):
            self._order = 0 if self._watched is None or self._watched[0] != self.step else self._order
            self._watched = self.step, self.layer
            self.watch(self.step, self.layer)
        for index, x in enumerate(inputs):
            if isinstance(x, np.ndarray):
                raise TypeError(
                    f"probe({point!r}, {op.__name__}): input {index} is an array that no probe returned, so nobody "
                    "knows where it comes from: give a value that a probe returned"
                )
        for name, x in attributes.items():
            if isinstance(x, Value):
                raise TypeError(f"probe({point!r}, {op.__name__}): {name} is given as a keyword: give values by place")
        sources = tuple(x if isinstance(x, Value) else None for x in inputs)
        arrays = tuple(x.array if isinstance(x, Value) else x for x in inputs)
        call = Call(self.step, self.layer, point or "", op, arrays, attributes, sources, self._order)
        self._order += 1
        return self.run(call)

    def foreseen(self, _call: Call) -> Arithmetic | None:
        """In which arithmetic the probe runs a call as it stands; None where it may run another one."""
        return None

    def run(self, call: Call) -> Value:
        """Return the value of a call, on weights as they are held, be its result recorded or the call a silent one."""
        call = call.held_in(self.arithmetic)
        return self.value(call) if call.point else self.silent(call)

    def value(self, call: Call) -> Value:
        """Return the value that the forward pass goes on with."""
        return Value(call.compute(self.arithmetic))

    def silent(self, call: Call) -> Value:
        """Return the value of a call whose result nobody records."""
        return Value(call.compute(self.arithmetic))
