"""What a hypothesis is: a named, executable way of being wrong, that plants and explains with one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

import numpy as np

from firstdiff.dumps import Site
from firstdiff.dumps.points import OUTSIDE
from firstdiff.hypotheses.where import Where
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import Operation
from firstdiff.model.probe import Call

Values = Mapping[str, Any]
"""The parameters of one way of being wrong: ``{"base": 10000.0}``. JSON holds them."""

Text = str | Callable[[Model | None], str]
"""A phrase, or what makes it for a model, and for no model in particular.

In a phrase ``<architecture>`` is replaced by the model's.
"""


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
    ran
        Every recorded call of the run so far: its site, and its number in its step.
    later
        Where what was observed is no result of the call, but of a later one.
    """

    model: Model
    arithmetic: Arithmetic
    lookup: Callable[[Site], Array | None]
    ran: Mapping[Site, int] = field(default_factory=dict)
    later: Later | None = None

    def observable(self, call: Call) -> Array:
        """What would be observed if this were the call."""
        return call.compute(self.arithmetic) if self.later is None else self.later.run(call)

    def beside(self, call: Call, point: str, *, layers: int = 0) -> Array | None:
        """The value of another point of the call's step and layer, or of a layer `layers` further on.

        After the last layer, its points are beside.
        """
        layer = None if point in OUTSIDE else self._layer(call) + layers
        return None if layer is not None and layer < 0 else self.lookup(Site(call.step, layer, point))

    def before(self, call: Call, *, layers: int = 0) -> list[str]:
        """Recorded points of the call's step and layer, or of one `layers` further on, which were computed before it.

        They stand in execution order. Points outside the layers belong to the call's own layer.
        """
        wanted = (self._layer(call) + layers, *([] if layers else [None]))
        ran = [(order, site) for site, order in self.ran.items() if site.step == call.step and site.layer in wanted]
        return [site.point for order, site in sorted(ran, key=lambda of: of[0]) if order < call.order]

    def _layer(self, call: Call) -> int:
        return self.model.hp.n_layer - 1 if call.layer is None else call.layer


Change = Callable[[Call, Scene, Values], Call | None]
Ways = Callable[[Call, Scene, Array | None], Iterable[Values]]


def one_way(_call: Call, _scene: Scene, _observed: Array | None) -> Iterable[Values]:
    """The ways of a hypothesis without parameters."""
    yield {}


class Apart(StrEnum):
    """What to do to tell a hypothesis from another that explains as well."""

    PROMPT = "run another prompt, with other and more tokens (firstdiff run MODEL --prompt TEXT)"
    LENGTH = "run a prompt of thousands of tokens (firstdiff run MODEL --long), where angles part"
    WEIGHT = "dump the weight itself, as weights.safetensors in the trace's folder, and run again"


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One way of being wrong.

    Parameters
    ----------
    id
        As in ``firstdiff demo --bug ID``.
    where
        The calls that it applies to.
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
        `says` with the parameters in braces, as in ``a rope base of {base:g} in place of the file's``, or what makes it
        of the parameters.
    stage
        Where in an engine it acts, as a number: of two faults at one site, that of the earlier stage comes first, and
        those of one stage exclude each other.
    source
        Where the bug was seen: ``owner/repository#number``, or empty.
    apart
        What tells it from another hypothesis that explains as well.
    everywhere
        What it is where it is done alike at every layer: a fault still, the engine's arithmetic, or its layout.
    harmless
        What is noted where it is done alike to Q and K, at every step: why no score changes; empty where scores do.
    rounds
        Whether it rounds what the operation is fed.
    """

    id: str
    where: Where
    says: Text
    fix: Text
    change: Change
    ways: Ways = one_way
    found: str | Callable[[Values], str] | None = None
    stage: int = 5
    source: str = ""
    apart: Apart = Apart.PROMPT
    everywhere: Literal["fault", "arithmetic", "layout"] = "fault"
    harmless: str = ""
    rounds: bool = False

    @property
    def outside_layers(self) -> bool:
        """Whether it is at home outside the layers, so that asking for a layer means nothing."""
        return self.where.outside_layers

    def apply(self, call: Call, scene: Scene, values: Values) -> Call | None:
        """The call gone wrong in one way; None where the hypothesis does not apply."""
        return self.change(call, scene, values) if self.where.matches(call) else None

    def first(self, call: Call, scene: Scene) -> tuple[Values, Call] | None:
        """The first way in which a call can go wrong, and the call; None where the hypothesis does not apply."""
        if self.where.matches(call):
            for values in self.ways(call, scene, None):
                if (changed := self.change(call, scene, values)) is not None:
                    return values, changed
        return None

    def told(self, values: Values, model: Model | None = None) -> str:
        """What is wrong, with the parameters, in a model."""
        if self.found is None or not values:
            return _said(self.says, model)
        return self.found.format(**values) if isinstance(self.found, str) else self.found(values)

    def advice(self, model: Model | None = None) -> str:
        """What to do about it, in an engine of a model."""
        return _said(self.fix, model)


def _said(text: Text, model: Model | None) -> str:
    if not isinstance(text, str):
        return text(model)
    return text if model is None else text.replace("<architecture>", model.architecture)


def telling(x: Array) -> bool:
    """Whether a tensor can be recognised by its numbers: what is all zero, all alike or no number equals nothing."""
    finite = x[np.isfinite(x)]
    return bool(finite.size) and float(finite.min()) < float(finite.max())


def with_op(call: Call, op: Operation, **attributes: Any) -> Call:  # noqa: ANN401 - an operation's own
    """The call with another operation, which takes the attributes too and those given."""
    return replace(call, op=op, attributes=call.attributes | attributes)


def replaced(call: Call, op: Operation, *inputs: Any, **attributes: Any) -> Call:  # noqa: ANN401
    """The call with another operation, inputs and attributes."""
    return replace(call, op=op, inputs=inputs, attributes=attributes)


def identity(x: Array, *, arithmetic: Arithmetic) -> Array:
    """The operation that does nothing."""
    return arithmetic.widen(x).copy()
