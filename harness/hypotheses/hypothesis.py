"""What a hypothesis is: a named, executable way of being wrong, that plants and explains with one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from firstdiff.dumps import Site
from firstdiff.dumps.points import OUTSIDE, is_inside
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import Operation
from firstdiff.model.probe import Call

Values = Mapping[str, Any]
"""The parameters of one way of being wrong: ``{"base": 10000.0}``. JSON holds them."""


@dataclass(frozen=True, slots=True, eq=False)
class Later:
    """The judged point further on, where the call is one of a segment, and what is there if the call is another."""

    point: str
    run: Callable[[Call], Array]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What surrounds a call.

    Parameters
    ----------
    model
        The model, for its hyperparameters and other weights.
    arithmetic
        What calls are computed in.
    lookup
        The value of another site of the run, laid out as the reference has it; None where there is none.
    later
        Where what was observed is no result of the call, but of a later one.
    """

    model: Model
    arithmetic: Arithmetic
    lookup: Callable[[Site], Array | None]
    later: Later | None = None

    def observable(self, call: Call) -> Array:
        """What would be observed if this were the call."""
        return call.compute(self.arithmetic) if self.later is None else self.later.run(call)

    def beside(self, call: Call, point: str, *, layers: int = 0) -> Array | None:
        """The value of another point of the call's step and layer, or of a layer `layers` further on.

        After the last layer, its points are beside.
        """
        own = self.model.hp.n_layer - 1 if call.layer is None and is_inside(point) else call.layer
        layer = None if own is None or not is_inside(point) else own + layers
        return None if layer is not None and layer < 0 else self.lookup(Site(call.step, layer, point))


Change = Callable[[Call, Scene, Values], Call | None]
Ways = Callable[[Call, Scene, Array | None], Iterable[Values]]


def one_way(_call: Call, _scene: Scene, _observed: Array | None) -> Iterable[Values]:
    """The ways of a hypothesis without parameters."""
    yield {}


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One way of being wrong.

    Parameters
    ----------
    id
        As in ``firstdiff demo --bug ID``.
    points
        Where it applies.
    says
        What is wrong, in one plain phrase.
    fix
        What to do about it, in one plain phrase.
    change
        Makes the wrong call of a right one; None where it does not apply to that call.
    ways
        The parameters to try at a call, the likeliest first. Given what was observed there, continuous ones are
        fitted to it; without, the first is what is planted.
    found
        `says` with the parameters in braces, as in ``a rope base of {base:g} in place of the file's``.
    stage
        Where in an engine it acts, as a number: of two faults at one site, that of the earlier stage comes first, and
        those of one stage exclude each other.
    source
        Where the bug was seen: ``owner/repository#number``, or empty.
    """

    id: str
    points: tuple[str, ...]
    says: str
    fix: str
    change: Change
    ways: Ways = one_way
    found: str | None = None
    stage: int = 5
    source: str = ""

    @property
    def outside_layers(self) -> bool:
        """Whether it is at home outside the layers, so that asking for a layer means nothing."""
        return set(self.points) <= set(OUTSIDE)

    def apply(self, call: Call, scene: Scene, values: Values) -> Call | None:
        """The call gone wrong in one way; None where the hypothesis does not apply."""
        return self.change(call, scene, values) if call.point in self.points else None

    def first(self, call: Call, scene: Scene) -> tuple[Values, Call] | None:
        """The first way in which a call can go wrong, and the call; None where the hypothesis does not apply."""
        if call.point in self.points:
            for values in self.ways(call, scene, None):
                if (changed := self.change(call, scene, values)) is not None:
                    return values, changed
        return None

    def told(self, values: Values) -> str:
        """What is wrong, with the parameters."""
        return self.says if self.found is None or not values else self.found.format(**values)


def with_attributes(call: Call, **attributes: Any) -> Call:  # noqa: ANN401 - an operation's own
    """The call with some attributes replaced."""
    return replace(call, attributes=call.attributes | attributes)


def with_input(call: Call, index: int, value: object) -> Call:
    """The call with one input replaced."""
    return replace(call, inputs=(*call.inputs[:index], value, *call.inputs[index + 1 :]))


def with_op(call: Call, op: Operation, **attributes: Any) -> Call:  # noqa: ANN401
    """The call with another operation, which takes the attributes too and those given."""
    return replace(call, op=op, attributes=call.attributes | attributes)


def replaced(call: Call, op: Operation, *inputs: Any, **attributes: Any) -> Call:  # noqa: ANN401
    """The call with another operation, inputs and attributes."""
    return replace(call, op=op, inputs=inputs, attributes=attributes)


def identity(x: Array, *, arithmetic: Arithmetic) -> Array:
    """The operation that does nothing."""
    return arithmetic.widen(x).copy()
