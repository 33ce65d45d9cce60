"""Which operand was rounded to what, by trying each: to fewer digits, or to codes with scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from firstdiff.explaining.measured.alteration import operand
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.view import View, operands
from firstdiff.hypotheses.hypothesis import Scene, Values
from firstdiff.model.holding import held
from firstdiff.model.probe import Call
from firstdiff.model.weights import Weight

Floats = npt.NDArray[np.floating]

LARGE = 0.5
"""Errors beyond which nothing was only rounded."""

GROUPS = (32, 64, 128)

CODES = {"i8": "int8", "f8_e4m3": "float8 (e4m3)", "f8_e5m2": "float8 (e5m2)"}


def ways(length: int) -> list[str]:
    """How rows of so many numbers may be rounded."""
    digits = [f"{bits} bits" for bits in (3, 4, 5, 6, 8, 9, 10, 11)]
    coded = [f"{code}-{by}" for code in CODES for by in ("tensor", "row", *(str(g) for g in GROUPS if length % g == 0))]
    return [*digits, *(way for way in coded if not way.startswith("f8") or "-tensor" in way or "-row" in way)]


def rounded_operands(view: View) -> Iterator[Found]:
    """Each operand rounded in each way; what each leaves is not known before it is tried."""
    if view.case.error > LARGE:
        return
    for name, x in operands(view.call).items():
        is_array = isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.ndim > 1
        if is_array or (isinstance(x, Weight) and name in ("weight", "bias")):
            for way in ways(int(x.shape[-1])):
                yield Found("measured-rounded", {"of": name, "to": way}, 0.0)


def rounded(x: Floats, way: str, largest: float = 0.0) -> Floats:
    """Numbers rounded in a way; `largest` is the largest magnitude of the tensor, where they are a part of it."""
    if way.endswith(" bits"):
        bits = int(way.removesuffix(" bits"))
        mantissa, exponent = np.frexp(x)
        return np.ldexp(np.rint(mantissa * 2.0**bits) / 2.0**bits, exponent).astype(x.dtype)
    made = held(np.asarray(x, np.float32), way, largest or float(np.abs(x).max(initial=0)))
    return made.astype(x.dtype)


def operand_rounded(call: Call, _scene: Scene, values: Values) -> Call | None:
    """The call with one operand rounded."""
    x = operands(call).get(values["of"])
    group = values["to"].rpartition("-")[2]
    if not isinstance(x, Weight | np.ndarray) or (group.isdigit() and x.shape[-1] % int(group)):
        return None
    if isinstance(x, Weight):
        return call.with_arguments(**{values["of"]: replace(x, dense=rounded(x.values(), values["to"], x.largest))})
    return call.with_arguments(**{values["of"]: rounded(x, values["to"])})


Rounding = Callable[[Floats], Floats]


def _rounded(values: Values) -> str:
    to = values["to"]
    if to.endswith(" bits"):
        named = {"8 bits": "bf16's 8 bits", "11 bits": "f16's 11 bits", "4 bits": "the 4 bits of float8 (e4m3)"}.get(
            to, to
        )
        return f"{operand(values)} is rounded to {named} of precision"
    code, _, by = to.partition("-")
    scale = {"tensor": "for the whole tensor", "row": "for each row"}.get(by, f"for each {by} numbers of a row")
    return f"{operand(values)} is rounded to {CODES[code]} with one scale {scale}"


STATEMENTS = (
    statement(
        "measured-rounded",
        "an operand is rounded",
        operand_rounded,
        _rounded,
        "find where this operand is converted: other layers do not do this",
    ),
)
