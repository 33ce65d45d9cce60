"""How the names of a dump were understood, in a table that a screen holds: one line for all layers and steps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from firstdiff.dumps.points import is_inside
from firstdiff.dumps.understood import NameRow

_NUMBER = re.compile(r"[0-9]+")
LAYER = "{layer}"


@dataclass(slots=True)
class _Row:
    """Names that differ in the layer alone, and mean the same point, or might."""

    pattern: str
    point: str | None
    nearest: str | None
    shape: tuple[int, ...]
    names: set[str] = field(default_factory=set)
    layers: set[int] = field(default_factory=set)
    steps: set[int] = field(default_factory=set)

    @property
    def meaning(self) -> str:
        if self.point is None:
            return "no point" if self.nearest is None else f"{self.nearest}?"
        return self.point


def name_table(rows: Sequence[NameRow], runs: Callable[[Iterable[int]], str]) -> str:
    """Write the table, and for names that are not understood the table that would map them.

    Parameters
    ----------
    rows
        How each name was read.
    runs
        Writes ``0, 1, 2`` as ``0-2``.
    """
    grouped = _grouped(rows)
    head = ("name", "point", "layers", "steps", "first shape")
    cells = [(r.pattern, r.meaning, runs(r.layers) or "-", runs(r.steps), str(list(r.shape))) for r in grouped]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *cells)]
    unknown = [row for row in grouped if row.point is None and row.nearest is not None]
    if unknown:
        count = len({name for row in unknown for name in row.names})
        said = "1 name is" if count == 1 else f"{count:,} names are"
        lines += ["", f"{said} not understood. What they may mean, to check and give with --names TABLE.toml:"]
        lines += [f"  {json.dumps(row.pattern)} = {json.dumps(row.nearest)}" for row in unknown if _maps(row)]
    return "\n".join(lines)


def _grouped(rows: Sequence[NameRow]) -> list[_Row]:
    found: dict[tuple[str, str | None, str | None], _Row] = {}
    for row in rows:
        pattern, layer = _pattern(row)
        one = found.setdefault((pattern, row.point, row.nearest), _Row(pattern, row.point, row.nearest, row.shape))
        one.names.add(row.name)
        one.steps.add(row.step)
        one.layers |= set() if layer is None else {layer}
    return list(found.values())


def _pattern(row: NameRow) -> tuple[str, int | None]:
    """The name with its layer left open, and the layer: of several numbers the one that is known to be it."""
    numbers = [*_NUMBER.finditer(row.name)]
    if row.layer is not None:
        numbers = [n for n in numbers if int(n[0]) == row.layer]
    meant = row.point or row.nearest
    if len(numbers) != 1 or (meant is not None and not is_inside(meant)):
        return row.name, row.layer
    (number,) = numbers
    return f"{row.name[: number.start()]}{LAYER}{row.name[number.end() :]}", int(number[0])


def _maps(row: _Row) -> bool:
    """Whether a line of a table can say what a name perhaps means."""
    return row.nearest is not None and is_inside(row.nearest) == (LAYER in row.pattern)
