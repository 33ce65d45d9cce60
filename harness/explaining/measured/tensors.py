"""Operands that are another tensor of the run, by trying each that was recorded before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstdiff.explaining.measured.alteration import BEFORE
from firstdiff.explaining.measured.places import NEGLIGIBLE
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.view import View, operands
from firstdiff.hypotheses.hypothesis import Scene, Values, telling
from firstdiff.model.arithmetic import Array
from firstdiff.model.probe import Call

MOST = 24
"""Tensors that are tried in the place of each operand."""


def other_operands(view: View) -> Iterator[Found]:
    """Each operand taken from another tensor that was recorded before."""
    call, scene = view.call, view.scene
    for name, own in operands(call).items():
        if not isinstance(own, np.ndarray) or own.ndim < 2 or own.dtype.kind != "f":  # noqa: PLR2004
            continue
        known: list[Array] = [own]
        for of, layers in (("", 0), (BEFORE, -1)):
            for point in scene.before(call, layers=layers):
                x = scene.beside(call, point, layers=layers)
                if x is None or x.size != own.size or not telling(x) or len(known) > MOST:
                    continue
                laid = x.reshape(own.shape)
                if NEGLIGIBLE * np.nansum(np.square(laid)) < np.nansum(np.square(own)):
                    continue
                if not any(np.array_equal(laid, other, equal_nan=True) for other in known):
                    known.append(laid)
                    yield Found("measured-operand", {"of": name, "other": point, "from": of}, 0.0)


def operand_replaced(call: Call, scene: Scene, values: Values) -> Call | None:
    """The call with an operand that is another recorded tensor."""
    own = call.argument(values["of"])
    other = scene.beside(call, values["other"], layers=-1 if values["from"] == BEFORE else 0)
    if other is None or not isinstance(own, np.ndarray) or other.size != own.size:
        return None
    return call.with_arguments(**{values["of"]: np.ascontiguousarray(other.reshape(own.shape))})


STATEMENTS = (
    statement(
        "measured-operand",
        "an operand is another tensor",
        operand_replaced,
        "{other}{from} is taken as the operand {of}",
        "give the operation its own input",
    ),
)
