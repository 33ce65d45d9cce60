"""What an engine recorded of one rotation: queries or keys before and after it, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import carrying
from firstdiff.errors import UsageError
from firstdiff.judging.layouts import Alignment
from firstdiff.judging.own_layout import OwnLayout
from firstdiff.model.architecture import Rotation
from firstdiff.model.arithmetic import Array
from firstdiff.model.engine import Model
from firstdiff.model.operations import rope
from firstdiff.model.probe import Call


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One rotation of one step, or of several in a row: the reference's call on what was recorded before it.

    Parameters
    ----------
    call
        Of the operation ``rope``: what was recorded before the rotation [token, head, head_dim], positions, factors.
    after
        What was recorded after it [token, head, head_dim].
    """

    call: Call
    after: Array

    @property
    def before(self) -> Array:
        """What was recorded before the rotation [token, head, head_dim]."""
        return np.asarray(self.call.inputs[0])

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """The position of each token, as the trace states it [token]."""
        return np.asarray(self.call.inputs[1], np.int64)

    @property
    def finite(self) -> bool:
        """Whether all recorded values are numbers."""
        return bool(np.isfinite(self.before).all() and np.isfinite(self.after).all())


def rotation_of(model: Model) -> Rotation:
    """How a model rotates queries and keys.

    Raises
    ------
    UsageError
        For a model that does not rotate.
    """
    if model.rotation is None:
        raise UsageError(
            f"{model.gguf.path}: the architecture {model.architecture} does not rotate queries and keys: "
            "there are no angles to show"
        )
    return model.rotation


def turn_of(model: Model) -> dict[str, Any]:
    """Base, scale and factors of a model's angles, as :func:`firstdiff.model.rope.angles` takes them.

    Raises
    ------
    UsageError
        For a model that does not rotate.
    """
    rotation = rotation_of(model)
    weight = None if rotation.factors is None else model.weights.get(rotation.factors)
    return {"base": rotation.base, "scale": rotation.scale, "factors": None if weight is None else weight.values()}


def turns(
    model: Model, trace: Trace, layer: int, point: str, alignment: Alignment, own: OwnLayout | None = None
) -> tuple[Turn, ...]:
    """Give each step that holds a rotated point at a layer, and what it was made of, in shapes that fit.

    With `own`, heads and pairs are the candidate's own, and `model` is the model as the candidate has it.
    """
    rotation, found = rotation_of(model), []
    heads = model.hp.n_head if point in carrying("Q") else model.hp.n_head_kv
    factors = None if rotation.factors is None else model.weights.get(rotation.factors)
    for index, step in enumerate(trace.steps):
        like = np.zeros((len(step.tokens), heads, model.hp.head_dim), np.float32)
        before, _ = alignment.read(trace, Site(index, layer, rotation.of[point]), like)
        after, _ = alignment.read(trace, Site(index, layer, point), like)
        if before is not None and after is not None:
            if own is not None:
                before, after = own.there(rotation.of[point], before), own.there(point, after)
            call = Call(index, layer, point, rope, (before, tuple(step.positions), factors), rotation.attributes)
            found.append(Turn(call, after))
    return tuple(found)


def joined(several: Sequence[Turn]) -> Turn:
    """Put the tokens of some steps in a row, as if they were of the first of these steps."""
    call = several[0].call
    before = np.concatenate([turn.before for turn in several])
    positions = tuple(int(p) for turn in several for p in turn.positions)
    return Turn(
        replace(call, inputs=(before, positions, *call.inputs[2:])), np.concatenate([turn.after for turn in several])
    )
