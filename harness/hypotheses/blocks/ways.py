"""How a decoder of quantised blocks goes wrong: another layout, other fields, or other places for the values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from firstdiff.model.block_layouts import LAYOUTS
from firstdiff.model.blocks import Bytes, Fields, Floats, Layout, Plane, Unpack, half
from firstdiff.model.grid_blocks import GridFields, grid_fields
from firstdiff.model.quants import QuantType

NIBBLES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
FIFTHS = ("Q5_0", "Q5_1")
MINIMA = ("Q4_1", "Q5_1")
K = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
K45 = ("Q4_K", "Q5_K")
K_NIBBLES = ("Q4_K", "Q5_K", "Q6_K")
K_MINIMA = ("Q2_K", "Q4_K", "Q5_K")
WITH_MINIMA = (*MINIMA, *K_MINIMA)
LANES = ("Q2_K", "Q3_K")
SIXTEENTHS = ("Q2_K", "Q3_K", "Q6_K")
"""K types with a scale for each 16 codes; the others have one for each 32."""

FP4 = ("MXFP4", "NVFP4")
TABLES = ("IQ4_NL", "IQ4_XS", *FP4)
"""Types whose nibbles are places in a table."""

WITH_HALF = tuple(kind for kind, layout in LAYOUTS.items() if layout.d is not None and not layout.byte)
"""Types in LAYOUTS whose blocks have a float16 scale."""

Decode = Callable[[Bytes, QuantType], Floats]
Bits = npt.NDArray[np.uint16]
N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True, slots=True)
class BlockWay:
    """One way of decoding blocks wrongly.

    Attributes
    ----------
    name
        What is done, in a few words.
    kinds
        The types that it makes sense for.
    decode
        Blocks, uint8 [block, byte], to values, float32 [block, element]. Each block stands for itself.
    """

    name: str
    kinds: tuple[str, ...]
    decode: Decode


@dataclass(frozen=True, slots=True)
class BlockFault:
    """A fault of dequantisation, and the ways in which it is seen.

    Attributes
    ----------
    id
        As in ``firstdiff demo --bug ID``.
    says
        What is wrong.
    fix
        What to do instead.
    ways
        The ways it is made in.
    """

    id: str
    says: str
    fix: str
    ways: tuple[BlockWay, ...]


def way(
    name: str,
    kinds: Sequence[str],
    *,
    layout: Callable[[Layout], Layout] | None = None,
    fields: Callable[[Fields], Fields] | None = None,
    values: Callable[[Floats], Floats] | None = None,
) -> BlockWay:
    """A way that reads from a changed layout, changes what was read, or moves the values."""

    def decode(raw: Bytes, kind: QuantType) -> Floats:
        where = LAYOUTS[kind.name]
        found = (where if layout is None else layout(where)).fields(raw)
        y = (found if fields is None else fields(found)).values()
        return y if values is None else values(y)

    return BlockWay(name, tuple(kinds), decode)


def grid_way(
    name: str,
    kinds: Sequence[str],
    change: Callable[[GridFields], GridFields] = lambda f: f,
    *,
    number: Callable[[Bits], Floats] = half,
) -> BlockWay:
    """A way for types with grids, that changes what was read, or takes the 16 bits of the scale for another number."""

    def decode(raw: Bytes, kind: QuantType) -> Floats:
        return change(grid_fields(raw, kind, number)).values()

    return BlockWay(name, tuple(kinds), decode)


# Changes of a layout.


def low(**changes: object) -> Callable[[Layout], Layout]:
    """The low bits (or whole codes) lie otherwise."""
    return lambda where: replace(where, low=replace(where.low, **changes))  # type: ignore[arg-type]


def high(**changes: object) -> Callable[[Layout], Layout]:
    """The high bits lie otherwise."""
    return lambda where: replace(where, high=_plane(where.high, **changes))


def both(low_width: int, high_width: int) -> Callable[[Layout], Layout]:
    """Low and high bits are read in runs of other widths."""
    return lambda where: high(width=high_width)(low(width=low_width)(where))


def placed(**starts: int) -> Callable[[Layout], Layout]:
    """The fields begin at other bytes of the block: `d`, `m`, `low`, `high`, `packed`."""

    def change(where: Layout) -> Layout:
        for name, start in starts.items():
            if name in {"low", "high"}:
                new: object = _plane(getattr(where, name), start=start)
            elif name == "packed":
                new = (start, start + where.packed[1] - where.packed[0])
            else:
                new = start
            where = replace(where, **{name: new})  # type: ignore[arg-type]
        return where

    return change


def packing(unpack: Unpack) -> Callable[[Layout], Layout]:
    """The scales of sub-blocks are unpacked otherwise."""
    return lambda where: replace(where, unpack=unpack)


def halves(number: Callable[[Bits], Floats]) -> Callable[[Layout], Layout]:
    """The 16 bits of `d` and `m` are another number."""
    return lambda where: replace(where, half=number)


def _plane(plane: Plane | None, **changes: object) -> Plane:
    assert plane is not None
    return replace(plane, **changes)  # type: ignore[arg-type]


# Changes of fields.


def through(table: Sequence[float]) -> Callable[[Fields], Fields]:
    """Codes stand for the numbers of another table."""
    return lambda f: replace(f, table=np.array(table, np.float32))


def offset(by: int) -> Callable[[Fields], Fields]:
    """Another number is subtracted from the codes."""
    return lambda f: replace(f, offset=by)


def no_high(f: Fields) -> Fields:
    """No high bits."""
    return replace(f, high=None)


def no_minimum(f: Fields) -> Fields:
    """No minimum."""
    return replace(f, m=None)


def high_bits(order: Sequence[int]) -> Callable[[Fields], Fields]:
    """Element i takes the high bits of element ``order[i]``; -1 is none."""
    taken = np.array(order)

    def change(f: Fields) -> Fields:
        assert f.high is not None
        return replace(f, high=f.high[:, taken] * (taken >= 0).astype(np.int8))

    return change


def groups(scales: Sequence[int], mins: Sequence[int] | None = None) -> Callable[[Fields], Fields]:
    """Sub-block i takes the scale of sub-block ``scales[i]``, and the minimum of ``mins[i]``, by default the same."""
    taken, taken_mins = list(scales), list(scales if mins is None else mins)

    def change(f: Fields) -> Fields:
        assert f.scales is not None
        return replace(f, scales=f.scales[:, taken], mins=None if f.mins is None else f.mins[:, taken_mins])

    return change


def ones(*names: str) -> Callable[[Fields], Fields]:
    """Fields that are taken to be 1: `d`, `m`, `scales`, `mins`; those that a type does not have stay away."""

    def change(f: Fields) -> Fields:
        for name in names:
            if (value := getattr(f, name)) is not None:
                f = replace(f, **{name: np.ones_like(value)})
        return f

    return change


def summed(f: Fields) -> Fields:
    """High bits added to low ones, where some engines join them with ``|``."""
    assert f.high is not None
    return replace(f, low=f.low + (f.high << f.low_bits), high=None)


def low_from(order: Sequence[int]) -> Callable[[Fields], Fields]:
    """Equal parts of the block: part i takes the low bits, or whole codes, of part ``order[i]``."""
    return lambda f: replace(f, low=parts(f.low, order))


def codes_from(order: Sequence[int]) -> Callable[[Fields], Fields]:
    """Equal parts of the block: part i takes the codes of part ``order[i]``."""
    return lambda f: replace(f, low=parts(f.unsigned, order), high=None)


def high_from(order: Sequence[int]) -> Callable[[Fields], Fields]:
    """Equal parts of the block: part i takes the high bits of part ``order[i]``."""

    def change(f: Fields) -> Fields:
        assert f.high is not None
        return replace(f, high=parts(f.high, order))

    return change


# Changes of places.


def parts(x: npt.NDArray[N], order: Sequence[int]) -> npt.NDArray[N]:
    """Equal parts of each block, [block, element], in another order."""
    return x.reshape(len(x), len(order), x.shape[1] // len(order))[:, list(order)].reshape(x.shape)


def paired(runs: int, planes: int) -> Callable[[Floats], Floats]:
    """Elements of `planes` parts in turn, in place of part after part, in each of `runs` runs."""

    def change(y: Floats) -> Floats:
        return y.reshape(len(y), runs, planes, y.shape[1] // (runs * planes)).swapaxes(2, 3).reshape(y.shape)

    return change


def moved(order: Sequence[int]) -> Callable[[Floats], Floats]:
    """Values in equal parts, in another order."""
    return lambda y: parts(y, order)


def written(mask: npt.NDArray[np.bool_]) -> Callable[[Floats], Floats]:
    """Only some elements of a block are written; the others stay zero."""
    return lambda y: np.where(mask, y, np.float32(0))
