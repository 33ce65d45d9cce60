"""How an engine holds weights: the dtype that it converts them to once, when it loads the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from firstdiff.model.errors import ModelError
from firstdiff.model.rounding import round_to

Floats = npt.NDArray[np.float32]

ELEMENTS = ("f16", "bf16")
"""Kinds that hold each number by itself. Vectors can be held in these only."""

LARGEST = {"f8_e4m3": 448.0, "f8_e5m2": 57344.0, "i8": 127.0}
"""The largest code, which the largest number of a row, a group or a tensor is scaled to."""

GROUPS = (32, 64, 128)
"""How many numbers of a row share a scale."""

SCALED = ("row", "tensor", *map(str, GROUPS))

WAYS = ("", "-inverse", "-of-f16", "-of-bf16", "-inverse-of-f16", "-inverse-of-bf16")
"""How codes are made: by a division, or a product with the scale's inverse; of the file's numbers, or of these
rounded before."""

_CODES = (
    *(f"f8_{f}-{by}" for f in ("e4m3", "e5m2") for by in ("row", "tensor")),
    "f8_e4m3",
    "f8_e5m2",
    *(f"i8-{by}" for by in SCALED),
)

KINDS = (*ELEMENTS, *_CODES, "q8_0")
"""What matrices can be held in: f16, bf16, fp8 with a scale for each row or tensor or with none, int8 (symmetric), and
ggml's Q8_0."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A kind of holding, taken apart.

    Parameters
    ----------
    number
        What each number becomes: ``f16``, ``bf16``, ``q8_0``, ``f8_e4m3``, ``f8_e5m2``, ``i8``.
    scale
        What shares a scale: ``row``, ``tensor``, or so many numbers of a row; empty for no scale.
    inverse
        Whether numbers are multiplied by the scale's inverse, and not divided by the scale.
    of
        What numbers are rounded to before: ``f16``, ``bf16``; empty for nothing.
    """

    number: str
    scale: str = ""
    inverse: bool = False
    of: str = ""

    @property
    def of_tensors(self) -> bool:
        """Whether a number's code depends on the whole tensor."""
        return self.scale == "tensor"

    def divides(self, length: int) -> bool:
        """Whether rows of so many numbers are whole groups."""
        group = 32 if self.number == "q8_0" else int(self.scale) if self.scale.isdecimal() else 1
        return length % group == 0


@lru_cache(maxsize=256)
def holding(kind: str) -> Holding:
    """Take a kind's name apart: ``f8_e4m3-row-of-bf16``.

    Raises
    ------
    ModelError
        Where it is none.
    """
    name, _, of = kind.partition("-of-")
    plain = name.removesuffix("-inverse")
    codes = plain in _CODES and (plain != name) <= ("-" in plain)
    if plain not in KINDS or (of and of not in ELEMENTS) or ((of or plain != name) and not codes):
        raise ModelError(f"weights held in {kind!r:.40}: there is no such way (there are {', '.join(KINDS)})")
    number, _, scale = plain.partition("-")
    return Holding(number, scale, plain != name, of)


def variants(kind: str) -> tuple[str, ...]:
    """The other ways in which engines make the codes of a kind; none for one that has no codes."""
    if kind not in _CODES:
        return ()
    return tuple(kind + way for way in WAYS[1:] if "-" in kind or "inverse" not in way)


def twin(kind: str) -> str | None:
    """The kind whose codes are made by the other of division and multiplication; they differ once in 50,000."""
    plain, of, rest = kind.partition("-of-")
    if plain.removesuffix("-inverse") not in _CODES or "-" not in plain:
        return None
    return (plain.removesuffix("-inverse") if plain.endswith("-inverse") else f"{plain}-inverse") + of + rest


def held(x: Floats, kind: str, largest: float = 0.0) -> Floats:
    """Numbers [..., n] as an engine has them that holds them in a kind, float32.

    `largest` is the largest magnitude of the whole tensor, which kinds with one scale for it need.
    """
    how = holding(kind)
    x = np.asarray(round_to(x, how.of or None), np.float32)
    if how.number in (*ELEMENTS, "q8_0"):
        return np.asarray(round_to(x, how.number), np.float32)
    code = _CODE[how.number]
    if not how.scale:
        return code(x)
    rows = x.reshape(*x.shape[:-1], -1, int(how.scale)) if how.scale.isdecimal() else x
    most = np.float32(largest) if how.of_tensors else np.abs(rows).max(-1, keepdims=True)
    if how.of_tensors and how.of:
        most = round_to(np.asarray(most), how.of)
    scale = np.asarray(most / np.float32(LARGEST[how.number]), np.float32)
    with np.errstate(all="ignore"):
        scaled = rows * (np.float32(1) / scale) if how.inverse else rows / scale
    rounded: Floats = code(np.where(scale == 0, np.float32(0), scaled)) * scale
    return rounded.reshape(x.shape)


def _whole(x: Floats) -> Floats:
    return np.clip(np.rint(x), np.float32(-127), np.float32(127))


_EXPONENT = np.uint32(0x7F800000)


def _narrow(x: Floats, mantissa: int, least: int, largest: float) -> Floats:
    """Round to nearest even to so many bits after the point; `least` is the exponent of the smallest normal number."""
    power = (np.ascontiguousarray(x).view(np.uint32) & _EXPONENT).view(np.float32)  # 2 to the number's exponent
    step = np.maximum(power, np.float32(2.0**least)) * np.float32(2.0**-mantissa)
    rounded: Floats = np.clip(np.rint(x / step) * step, np.float32(-largest), np.float32(largest))
    return rounded


_CODE: dict[str, Callable[[Floats], Floats]] = {
    "i8": _whole,
    "f8_e4m3": lambda x: _narrow(x, 3, -6, LARGEST["f8_e4m3"]),  # OCP's E4M3, which has no infinities
    "f8_e5m2": lambda x: _narrow(x, 2, -14, LARGEST["f8_e5m2"]),
}
