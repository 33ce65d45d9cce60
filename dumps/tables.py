"""Tables of names: a user's own map from an engine's names to points, in TOML or JSON.

.. code-block:: toml

    "their.{layer}.q" = "Qcur"
    "final_norm" = "result_norm"
    "pass{step}.{layer}.k" = "Kcur"   # where the name, and not the file, says the step

A name is looked up and never searched for, so that a large table costs no more than a small one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.nearest import nearest
from firstdiff.dumps.points import INSIDE, OUTSIDE, is_inside
from firstdiff.dumps.site import check_key
from firstdiff.dumps.strict_json import parse_object

MAX_TABLE = 256 * 2**10  # bytes; a name for every point of every layer of the largest models takes 150 KB

_NUMBER = re.compile(r"(?<![0-9])[0-9]{1,9}(?![0-9])")
_MOST_NUMBERS = 8  # in one name: candidates grow with their square
_PLACE = re.compile(r"\{[^{}]*\}")
_MEANT = re.compile(r"\{[^{}]*\}|%[0-9]*d|\*|(?<![A-Za-z0-9])[0-9]+(?![A-Za-z0-9])|<[a-z]+>|\$\w+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a name of theirs belongs."""

    point: str
    layer: int | None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A checked table. `entries` is what was written, name to point."""

    entries: Mapping[str, str]

    def place(self, name: str) -> Place | None:
        """Return where a name belongs, None where the table does not have it."""
        for pattern, numbers in patterns(name):
            if pattern in self.entries:
                point, _, layer = self.entries[pattern].partition("-")
                fixed = int(layer) if layer else numbers.get("layer")
                return Place(point, fixed, numbers.get("step"))
        return None


def patterns(name: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the keys that may stand for a name, itself first, each with the numbers that it leaves open."""
    yield name, {}
    runs = [(*found.span(), int(found[0])) for found in _NUMBER.finditer(name)][:_MOST_NUMBERS]
    for what in ("layer", "step"):
        for begin, end, number in runs:
            yield f"{name[:begin]}{{{what}}}{name[end:]}", {what: number}
    for first in runs:
        for second in runs:
            if first is second:
                continue
            cuts = sorted([(*first, "layer"), (*second, "step")])
            (a, b, _, x), (c, d, _, y) = cuts
            yield (
                f"{name[:a]}{{{x}}}{name[b:c]}{{{y}}}{name[d:]}",
                {"layer": first[2], "step": second[2]},
            )


def read_table(path: Path) -> Table:
    """Read a table from a ``.toml`` or ``.json`` file, at the top or under ``names``.

    Raises
    ------
    TraceError
        If it cannot be read, is too large, or `checked` refuses it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TABLE + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"{path}: the table of names cannot be read: {why}") from None
    if len(raw) > MAX_TABLE:
        raise TraceError(f"{path}: is larger than {MAX_TABLE:,} bytes, which is all that is read of a table of names")
    found = parse_object(raw, str(path)) if path.suffix == ".json" else _toml(raw, path)
    inner = found.get("names")
    return checked(inner if isinstance(inner, dict) else found, str(path))


def _toml(raw: bytes, path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except RecursionError:
        raise TraceError(f"{path}: is nested too deep to be read") from None
    except ValueError as error:  # TOML's and UTF-8's are
        why = " ".join(str(error)[:200].split())
        raise TraceError(f"{path}: is not valid TOML ({why}): put each name and point in quotes") from None


def checked(entries: Mapping[str, object], where: str) -> Table:
    """Check a table, so that a slip of the finger is not taken for a tensor that was not recorded.

    Raises
    ------
    TraceError
        If a key is no name, a value is no point, or a layer is said where there is none or missing where there is.
    """
    if not entries:
        raise TraceError(f"{where}: the table of names is empty")
    table: dict[str, str] = {}
    for name, point in entries.items():
        check_key(name)
        said = f"{where}: the name {shown(name)}"
        if isinstance(point, Mapping):
            raise TraceError(f'{said} holds a table: put names with dots in quotes, "{name}.…" = "point"')
        if not isinstance(point, str):
            raise TraceError(f"{said} must stand for a point, a text, and not for {shown(point)}")
        table[name] = _checked(name, point.removesuffix("-{layer}"), said)
    return Table(table)


def _checked(name: str, point: str, said: str) -> str:
    places = _PLACE.findall(name)
    wrong = [place for place in places if place not in ("{layer}", "{step}")]
    if wrong:
        raise TraceError(f"{said} holds {shown(wrong[0])}: did you mean {{layer}}? ({{layer}} and {{step}} are known)")
    if len(set(places)) < len(places):
        raise TraceError(f"{said} holds {shown(places[0])} twice: once is enough, so put the number in its place")
    bare, dash, layer = point.partition("-")
    fixed = bool(dash) and layer.isdigit() and layer.isascii()
    if dash and not fixed:
        bare = point
    if bare not in OUTSIDE and not is_inside(bare):
        known = nearest(bare)
        hint = f": did you mean {known!r}?" if known else f": the points are {', '.join((*OUTSIDE, *INSIDE))}"
        raise TraceError(f"{said} stands for {shown(point)}, which is no point{hint}")
    if bare in OUTSIDE and (fixed or "{layer}" in places):
        raise TraceError(f"{said} says a layer, and {bare!r} is a point outside the layers: leave the layer out")
    if bare not in OUTSIDE and fixed == ("{layer}" in places):
        if fixed:
            raise TraceError(f"{said} says {{layer}}, and {shown(point)} says one too: leave out the latter")
        guess = _MEANT.sub("{layer}", name, count=1)
        hint = f"did you mean {guess!r}?" if guess != name else f"write {{layer}} in it, or '{bare}-0' for the point"
        raise TraceError(f"{said} has no {{layer}}, and {bare!r} is a point of every layer: {hint}")
    return point
