"""A candidate whose head dimensions stand in the other order: model, calls and results as the candidate has them.

Where the reference pairs neighbours and the candidate halves, or the reverse, the rows of its weights of Q and K stand
in another order, and it turns its own pairs. Whatever went wrong, went wrong on these rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from firstdiff.dumps import Step
from firstdiff.judging.case import Case, Done
from firstdiff.judging.layouts import ROTATED, Alignment, is_reordered
from firstdiff.judging.readers import Indices, order, reordered, restored
from firstdiff.model.architecture import Rotation
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.attention import append, scores
from firstdiff.model.engine import Model
from firstdiff.model.gguf import GGUF
from firstdiff.model.operations import Derived, linear, rms_norm, rope
from firstdiff.model.outline import outline
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight, Weights


class _OwnWeights(Weights):
    """The tensors of a file, some with their rows in the candidate's order."""

    def __init__(self, gguf: GGUF, rows: Mapping[str, Indices], prefix: str = "") -> None:
        super().__init__(gguf, prefix)
        self._rows = rows

    def layer(self, index: int) -> Weights:
        """The tensors of layer `index`."""
        return _OwnWeights(self._gguf, self._rows, f"blk.{index}.")

    def __getitem__(self, name: str) -> Weight:
        rows = self._rows.get(self._prefix + name)
        weight = super().__getitem__(name)
        return weight if rows is None else weight.reordered(rows)


@dataclass(frozen=True, eq=False)
class OwnModel(Model):
    """The model as a candidate has it that pairs the dimensions of its heads the other way."""

    pairing: str = "half"

    @property
    def rotation(self) -> Rotation | None:
        """How the candidate rotates queries and keys."""
        found = super().rotation
        return None if found is None else replace(found, pairing=self.pairing)


@dataclass(frozen=True, slots=True, eq=False)
class OwnLayout:
    """How a candidate has what the reference computes.

    Parameters
    ----------
    model
        The model, with its rows and its pairing.
    pairing
        The reference's.
    rows
        The order of the rows of each weight that the candidate has in another one.
    """

    model: Model
    pairing: str
    rows: Mapping[str, Indices]

    def there(self, point: str, x: Array) -> Array:
        """A result of the reference's, as the candidate has it."""
        return reordered(self.pairing, x) if point in ROTATED else x

    def back(self, point: str, x: Array) -> Array:
        """A result of the candidate's, as the reference has it."""
        return restored(self.pairing, x) if point in ROTATED else x

    def own(self, call: Call) -> Call:
        """One of the reference's calls, as the candidate makes it."""
        turned: dict[str, Any] = {
            name: x if x is None else reordered(self.pairing, x)
            for name in _HEADS.get(call.op, ())
            if call.point in ROTATED or call.op is scores
            for x in (call.argument(name),)
        }
        if call.op in (linear, rms_norm) and call.point in ROTATED:
            turned |= {name: self._of_weight(call.argument(name)) for name in ("weight", "bias")}
            turned = {name: x for name, x in turned.items() if name in call.arguments}
        if call.op is rope and call.point in ROTATED:
            turned["pairing"] = "half" if self.pairing == "interleaved" else "interleaved"
        return call.with_arguments(**turned) if turned else call

    def _of_weight(self, weight: Weight | None) -> Weight | None:
        rows = None if weight is None else self.rows.get(weight.name)
        return weight if weight is None or rows is None else weight.reordered(rows)

    def case(self, case: Case) -> Case:
        """A case as the candidate has it; as it is where it spans calls that nobody records."""
        if any(not call.point for call in case.calls):
            return case
        point = case.site.point
        return replace(
            case,
            call=self.own(case.call),
            recorded=self.there(point, case.recorded),
            computed=self.there(point, case.computed),
            segment=tuple(Done(self.own(done.call), done.value) for done in case.segment),
        )

    def laid_back(self, call: Call) -> Call:
        """One of the candidate's calls, with its result as the reference has it."""
        if call.point not in ROTATED:
            return call
        op, pairing = call.op, self.pairing

        def compute(*inputs: object, arithmetic: Arithmetic, **attributes: object) -> Array:
            return restored(pairing, op(*inputs, arithmetic=arithmetic, **attributes))

        return replace(call, op=Derived(op, compute, sizes=lambda x: restored(pairing, x)))


_HEADS = {rms_norm: ("x",), rope: ("x",), append: ("past", "new"), scores: ("q", "keys")}
"""Operands of heads, by operation."""


def own_layout(model: Model, alignment: Alignment) -> OwnLayout | None:
    """The candidate's own layout; None where its head dimensions stand as the reference has them."""
    rotation = model.rotation
    if rotation is None or not any(is_reordered(alignment.layouts.get(point)) for point in ROTATED):
        return None
    rows: dict[str, Indices] = {}
    for awaited in outline(model, [Step((0,), (0,))]):
        call = awaited.call
        if call.point in ROTATED and call.op in (linear, rms_norm):
            dims = order(rotation.pairing, awaited.shape[-1])
            for weight in (call.argument("weight"), call.argument("bias")):
                if isinstance(weight, Weight):
                    heads = weight.shape[0] // len(dims)
                    rows[weight.name] = (np.arange(heads)[:, None] * len(dims) + dims).reshape(-1)
    pairing = "half" if rotation.pairing == "interleaved" else "interleaved"
    own = OwnModel(model.gguf, model.architecture, model.hp, _OwnWeights(model.gguf, rows), model.written, pairing)
    return OwnLayout(own, rotation.pairing, rows)
