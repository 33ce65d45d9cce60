"""Names understood: which tensor is at which site, and which names nobody knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.listing import Entry
from firstdiff.dumps.names import Convention, Meaning
from firstdiff.dumps.nearest import nearest
from firstdiff.dumps.points import as_point, is_inside
from firstdiff.dumps.site import Site
from firstdiff.dumps.spelling import layered
from firstdiff.dumps.tensors import Tensor

if TYPE_CHECKING:
    from firstdiff.dumps.trace import Trace


@dataclass(frozen=True, slots=True)
class Named:
    """How one name of a dump was read.

    Parameters
    ----------
    name
        The engine's own.
    step
        The step it was recorded at.
    site
        Where the trace holds its tensor: the point's site, or for a name that is no point's, the name itself. None
        for a tensor that is left aside because another one of the step is that site.
    point
        The point that it means, None if it means none.
    known
        False if the convention does not have the name.
    shape
        As recorded.
    """

    name: str
    step: int
    site: Site | None
    point: str | None
    known: bool
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """A name that is not understood; its tensor can still be read, at the site of its own name.

    Parameters
    ----------
    name
        The engine's own.
    step
        The first step it is recorded at.
    nearest
        The point that it probably means, None if none comes near.
    shape
        As recorded there.
    """

    name: str
    step: int
    nearest: str | None
    shape: tuple[int, ...]

    @property
    def pattern(self) -> str:
        """The name with ``{layer}`` for its layer, the key that a table of names would have."""
        return layered(self.name)[0]


@dataclass(frozen=True, slots=True)
class NameRow:
    """One line of an explanation of names: what a name is, or what it might be."""

    name: str
    step: int
    point: str | None
    layer: int | None
    nearest: str | None
    shape: tuple[int, ...]


def understand(entries: Sequence[Entry], convention: Convention | None) -> tuple[dict[Site, Tensor], tuple[Named, ...]]:
    """Place tensors at sites.

    Raises
    ------
    TraceError
        If two names of a step mean one site, or a name cannot be a site.
    """
    tensors: dict[Site, Tensor] = {}
    named: list[Named] = []
    steps: dict[int, list[Entry]] = {}
    for entry in entries:
        steps.setdefault(entry.step, []).append(entry)
    for step in steps.values():
        meanings = convention.read([entry.name for entry in step]) if convention else {}
        places = {entry.name: _place(entry, meanings.get(entry.name)) for entry in step}
        holders = _holders(step, meanings, places)
        for entry in step:
            site, meaning = places[entry.name], meanings.get(entry.name)
            held = holders[site] is entry
            point = site.point if held and meaning is not None and meaning.place is not None else None
            named.append(
                Named(entry.name, entry.step, site if held else None, point, meaning is not None, entry.tensor.shape)
            )
            if held:
                tensors[site] = entry.tensor
    return tensors, tuple(named)


def _place(entry: Entry, meaning: Meaning | None) -> Site:
    try:
        if meaning is None or meaning.place is None:
            return Site.of_key(entry.name, entry.step)
        return Site(entry.step, meaning.place.layer, meaning.place.point)
    except TraceError as error:
        raise TraceError(f"{entry.file}: {error}") from None


def _holders(step: Sequence[Entry], meanings: dict[str, Meaning], places: dict[str, Site]) -> dict[Site, Entry]:
    """Return which tensor of a step holds each site."""

    def rank(entry: Entry) -> int:
        meaning = meanings.get(entry.name)
        return -1 if meaning is None or meaning.place is None else meaning.rank

    holders: dict[Site, Entry] = {}
    for entry in step:
        other = holders.setdefault(places[entry.name], entry)
        if other is entry or rank(other) > rank(entry):
            continue
        if rank(other) == rank(entry):
            raise TraceError(
                f"{entry.file}: {shown(other.name)} and {shown(entry.name)} both mean {places[entry.name]}: "
                "leave out one, or give a table of names that has only one"
            )
        holders[places[entry.name]] = entry
    return holders


def unknown(named: Sequence[Named]) -> tuple[Unknown, ...]:
    """Return the names that are not understood, each once, in the order of the dump."""
    first: dict[str, Named] = {}
    for one in named:
        if not one.known:
            first.setdefault(one.name, one)
    return tuple(Unknown(one.name, one.step, nearest(one.name), one.shape) for one in first.values())


def explain_names(trace: Trace) -> tuple[NameRow, ...]:
    """Return how each name of a trace was read, in the order of the dump.

    `point` is None for a name that is not understood, or known to be no point, and `nearest` is then the point that
    it might mean.
    """
    return explain(trace.named or [_own(trace, site) for site in trace])


def explain(named: Sequence[Named]) -> tuple[NameRow, ...]:
    """Return how each name was read, with suggestions for those that are not understood."""
    rows = []
    for one in named:
        layer = one.site.layer if one.site is not None and one.point is not None else layered(one.name)[2]
        guess = None if one.known else nearest(one.name)
        rows.append(NameRow(one.name, one.step, one.point, layer, guess, one.shape))
    return tuple(rows)


def _own(trace: Trace, site: Site) -> Named:
    known = as_point(site.key) is not None
    return Named(site.key, site.step, site, site.point if known else None, known, trace.shape(site))


def suggested_table(trace: Trace) -> dict[str, str]:
    """Return a table of names for what is not understood, from what each name probably means.

    A person should check it. Of several names that come nearest to one point, the first has it.
    """
    table: dict[str, str] = {}
    taken = {one.point for one in trace.named if one.point is not None}
    for name in trace.unknown:
        point, pattern = name.nearest, name.pattern
        if point is not None and point not in taken and is_inside(point) == ("{layer}" in pattern):
            table[pattern] = point
            taken.add(point)
    return table


def restepped(entries: Sequence[Entry], convention: Convention | None) -> list[Entry] | None:
    """Return the tensors at the steps that their names say, or None if the convention's names say none."""
    if convention is None or convention.step_of is None:
        return None
    said = [(entry, convention.step_of(entry.name)) for entry in entries]
    return [entry if step is None else replace(entry, step=step) for entry, step in said]
