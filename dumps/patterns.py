"""How people print what their engines compute: tables of words, and line forms built of safe pieces.

Nothing here is a regular expression of the user's: words are compared as words, and a form is matched from left to
right without ever going back, so that no line and no file of patterns can make reading slow.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.points import OUTSIDE
from firstdiff.dumps.site import Site

NUMBERS = ("rms", "min", "max", "mean", "std", "sum", "norm")
LISTS = ("first", "last")
MOST_BYTES = 1 << 20  # of a file of patterns; ours has 8 kB
MOST_CHARACTERS = 200  # of a spelling or a form: longer than any name seen

_TABLES = ("points", "statistics", "pairs", "words", "ggml", "lines")
_PIECE = re.compile(r"\{([a-z_]{1,20})\}")
_PIECES = ("name", "layer", "step", "_", *NUMBERS, *LISTS)
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Form:
    """A line of a fixed form: literal texts, and between each two the piece that stands there.

    `texts` has one entry more than `pieces`; only the first and the last may be empty.
    """

    texts: tuple[str, ...]
    pieces: tuple[str, ...]

    def match(self, line: str) -> dict[str, str] | None:
        """What stands for each piece, or None; each text is looked for once, where it comes first."""
        at = line.find(self.texts[0])
        if at < 0:
            return None
        found = {}
        at += len(self.texts[0])
        for piece, text in zip(self.pieces, self.texts[1:], strict=True):
            end = line.find(text, at) if text else len(line)
            if end < 0:
                return None
            if piece != "_":
                found[piece] = line[at:end].strip()
            at = end + len(text)
        return found


@dataclass(frozen=True, slots=True)
class Patterns:
    """The tables of a file of patterns, by spelling.

    Parameters
    ----------
    points
        Point by spelling (see :func:`words`).
    outside
        Points outside the layers.
    statistics, pairs
        What a word before one number, or before two, stands for.
    layer, step, name, noise, other
        Words; see patterns.toml.
    renamed, views
        llama.cpp's names that stand for another point after an operation, and operations that compute nothing.
    forms
        Line forms, the user's first.
    """

    points: Mapping[str, str]
    outside: frozenset[str]
    statistics: Mapping[str, str]
    pairs: Mapping[str, tuple[str, str]]
    layer: tuple[str, ...]
    step: tuple[str, ...]
    name: frozenset[str]
    noise: tuple[str, ...]
    other: frozenset[str]
    renamed: Mapping[tuple[str, str], str]
    views: frozenset[str]
    forms: tuple[Form, ...]


def words(text: str) -> str:
    """A spelling as it is compared: lower case, one space for everything but letters and digits."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def spaced(text: str) -> str:
    """`text` with each run of white space as one space."""
    return " ".join(text.split())


def load_patterns(path: Path | None = None) -> Patterns:
    """The patterns that firstdiff brings, and a user's file on top of them.

    Raises
    ------
    TraceError
        For a file that cannot be read, is no TOML, or holds what no pattern is.
    """
    ours = tomllib.loads(files("firstdiff.dumps").joinpath("patterns.toml").read_text("utf-8"))
    theirs = {} if path is None else _read(path)
    where = "patterns.toml" if path is None else str(path)
    try:
        return _merged(ours, theirs)
    except TraceError as e:
        raise TraceError(f"{where}: {e}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise TraceError(f"{path}: is larger than {MOST_BYTES:,} bytes: give a table of patterns with --patterns")
        table = tomllib.loads(raw.decode())
    except OSError as e:
        raise TraceError(f"{path}: cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        if isinstance(e, TraceError):
            raise
        raise TraceError(f"{path}: is no TOML ({shown(str(e))}): patterns are tables as in patterns.toml") from None
    for name in table:
        if name not in _TABLES:
            raise TraceError(f"{path}: there is no table {shown(name)}: the tables are {', '.join(_TABLES)}")
    return table


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> Patterns:
    both = ours, theirs
    said = {key: _texts(both, "words", key) for key in ("layer", "step", "name", "noise", "other", "outside")}
    _known("words", theirs.get("words", {}), said)
    _known("statistics", theirs.get("statistics", {}), (*NUMBERS, *LISTS))
    _known("ggml", theirs.get("ggml", {}), ("renamed", "views"))
    lines = theirs.get("lines", []) + ours.get("lines", []) if isinstance(theirs.get("lines", []), list) else None
    if lines is None or any(not isinstance(line, dict) or set(line) != {"form"} for line in lines):
        raise TraceError('a line form is written as [[lines]] and below it form = "{name}: {rms} {min}"')
    return Patterns(
        points=_by_spelling(both, "points"),
        outside=frozenset((*OUTSIDE, *said["outside"])),
        statistics=_by_spelling(both, "statistics"),
        pairs=_pairs(both),
        layer=tuple(map(words, said["layer"])),
        step=tuple(map(words, said["step"])),
        name=frozenset(map(words, said["name"])),
        noise=tuple(map(words, said["noise"])),
        other=frozenset(map(words, said["other"])),
        renamed={(op, name): point for op, name, point in _renamed(both)},
        views=frozenset(_texts(both, "ggml", "views")),
        forms=tuple(parse_form(line["form"]) for line in lines),
    )


def parse_form(text: object) -> Form:
    """Make a form of ``"{name} L{layer}: {rms} | {min}"``.

    Raises
    ------
    TraceError
        For an unknown or repeated piece, or two with nothing between them.
    """
    if not isinstance(text, str) or not 0 < len(text) <= MOST_CHARACTERS:
        raise TraceError(f"a line form must be a text of 1 to {MOST_CHARACTERS} characters, not {shown(text)}")
    parts = _PIECE.split(spaced(text))
    texts, pieces = tuple(parts[0::2]), tuple(parts[1::2])
    for piece in pieces:
        if piece not in _PIECES:
            known = ", ".join(f"{{{p}}}" for p in _PIECES)
            raise TraceError(f"line form {shown(text)}: {{{piece}}} is not known: the pieces are {known}")
        if piece != "_" and pieces.count(piece) > 1:
            raise TraceError(f"line form {shown(text)}: {{{piece}}} comes twice")
    if not all(t.strip() for t, _ in pairwise(texts[1:])):
        raise TraceError(f"line form {shown(text)}: two pieces need some text between them, other than spaces")
    if not set(pieces) & {*NUMBERS, *LISTS} or "name" not in pieces:
        raise TraceError(f"line form {shown(text)}: needs {{name}}, and a value such as {{rms}}")
    return Form(tuple(t.strip() if 0 < i < len(texts) - 1 else t for i, t in enumerate(texts)), pieces)


def _by_spelling(both: Sequence[dict[str, Any]], table: str) -> dict[str, str]:
    """Meaning by spelling; where two tables claim one, the user's."""
    found: dict[str, str] = {}
    for tables in both:
        claimed: dict[str, str] = {}
        for meaning in tables.get(table, {}) if isinstance(tables.get(table, {}), dict) else _no_table(table):
            Site(0, 0, meaning)  # refuses what is no name
            for text in (meaning, *_texts([tables], table, meaning)):
                if claimed.setdefault(words(text), meaning) != meaning:
                    raise TraceError(
                        f"{shown(text)} is a spelling of {claimed[words(text)]} and of {meaning}: keep one"
                    )
        found |= claimed
    found.pop("", None)
    return found


def _pairs(both: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    pairs = {}
    for tables in both:
        for spelling in tables.get("pairs", {}) if isinstance(tables.get("pairs", {}), dict) else _no_table("pairs"):
            match _texts([tables], "pairs", spelling):
                case [first, second] if first in NUMBERS and second in NUMBERS:
                    pairs[words(spelling)] = first, second
                case _:
                    raise TraceError(f"pair {shown(spelling)} must name two of {', '.join(NUMBERS)}")
    return pairs


def _renamed(both: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for tables in both:
        for row in tables.get("ggml", {}).get("renamed", ()):
            match row:
                case [str(op), str(name), str(point)]:
                    yield op, name, point
                case _:
                    raise TraceError(f"ggml.renamed: {shown(row)} is no [operation, name, point]")


def _texts(both: Sequence[dict[str, Any]], table: str, key: str) -> list[str]:
    """A list of short texts of both files, the same key's one after the other."""
    texts: list[str] = []
    for tables in both:
        held = tables.get(table, {})
        listed = held.get(key, []) if isinstance(held, dict) else _no_table(table)
        if not isinstance(listed, list) or not all(
            isinstance(t, str) and 0 < len(t) <= MOST_CHARACTERS for t in listed
        ):
            raise TraceError(
                f"{table}.{key} must be a list of texts of up to {MOST_CHARACTERS} characters, not {shown(listed)}"
            )
        texts += listed
    return texts


def _no_table(name: str) -> list[Any]:
    raise TraceError(f"{name} must be a table, as in patterns.toml")


def _known(table: str, given: object, known: Sequence[str] | Mapping[str, object]) -> None:
    for key in given if isinstance(given, dict) else _no_table(table):
        if key not in known:
            raise TraceError(f"{table}.{key!s:.60} is not known: there are {', '.join(known)}")
