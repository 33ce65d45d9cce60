"""The key-value part of a GGUF file, decoded key by key when asked.

Opening a model walks the keys only to find where each value ends. An array is decoded when its key is
looked up, and kept: nobody pays for a vocabulary that nobody reads.

Source: docs/gguf.md of the ggml project (``gguf_metadata_kv_t``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firstdiff.model.cursor import Cursor
from firstdiff.model.errors import ModelError, quoted
from firstdiff.model.string_arrays import read_strings, skip_strings

_STRING = 8
_ARRAY = 9
_SCALARS = {  # gguf_metadata_value_type: form, ascending by number
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
LEAST_KEY = 13  # bytes: an empty key's length, the value's type, a value of one byte
_LEAST_STRING = 8  # bytes: an empty string's length
_LEAST_ARRAY = 12  # bytes: an empty array's type and length
_DEEPEST = 8  # arrays within arrays; no known file has more than 1


@dataclass(frozen=True, slots=True)
class Metadata(Mapping[str, Any]):
    """Metadata values by key, in the file's order.

    Scalars come as int, float, bool or str; an array of scalars as a read-only numpy array, an array of
    strings as a list of str, an array of arrays as a list of those. Text that is not UTF-8 keeps its
    place with U+FFFD for the bytes that are not.

    Parameters
    ----------
    cursor
        The file the values lie in.
    places
        For each key its value's type and byte offset.
    """

    cursor: Cursor
    places: dict[str, tuple[int, int]]
    _decoded: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401  # the file says which type
        if key not in self._decoded:
            kind, pos = self.places[key]
            cursor = Cursor(self.cursor.path, self.cursor.data, pos)
            self._decoded[key] = _read(cursor, kind, f"the value of {quoted(key)}")
        return self._decoded[key]

    def encoded(self, key: str) -> bytes:
        """A value behind its type, as it stands in the file."""
        kind, pos = self.places[key]
        cursor = Cursor(self.cursor.path, self.cursor.data, pos)
        _skip(cursor, kind, f"the value of {quoted(key)}")
        return struct.pack("<I", kind) + self.cursor.data[pos : cursor.pos]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, key: object) -> bool:
        return key in self.places


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """Find `count` keys and where their values lie, and leave the cursor behind the last one.

    Raises
    ------
    ModelError
        If a key comes twice or is not UTF-8, or a value's type is unknown or its end past the file's.
    """
    places: dict[str, tuple[int, int]] = {}
    for index in range(count):
        key = cursor.name(f"metadata key {index:,} of {count:,}")
        if key in places:
            raise ModelError(
                f"{cursor.path}: metadata key {quoted(key)} comes twice, as key {list(places).index(key):,} "
                f"and {index:,}: the file is damaged, convert it again"
            )
        what = f"the value of {quoted(key)}"
        kind = cursor.u32(f"the type of {quoted(key)}")
        places[key] = kind, cursor.pos
        _skip(cursor, kind, what)
    return Metadata(cursor, places)


def _skip(cursor: Cursor, kind: int, what: str, depth: int = 0) -> None:
    """Move the cursor past one value."""
    if form := _SCALARS.get(kind):
        cursor.skip(form.size, what)
    elif kind == _STRING:
        cursor.skip(cursor.u64(what), what)
    elif kind != _ARRAY:
        raise ModelError(
            f"{cursor.path}: {what} at offset {cursor.pos:,} has type {kind}, where GGUF knows 0 to 12: "
            f"the file is damaged, fetch it again"
        )
    elif depth == _DEEPEST:
        raise ModelError(
            f"{cursor.path}: {what} nests arrays more than {_DEEPEST} deep at offset {cursor.pos:,}: "
            f"the file is damaged, fetch it again"
        )
    else:
        _skip_array(cursor, what, depth + 1)


def _skip_array(cursor: Cursor, what: str, depth: int) -> None:
    kind, count = _array_head(cursor, what)
    if form := _SCALARS.get(kind):
        cursor.skip(form.size * count, what)
    elif kind == _STRING:
        skip_strings(cursor, count, what)
    else:
        if kind != _ARRAY:  # says so for an empty array too
            _skip(cursor, kind, what)
        for _ in range(count):
            _skip(cursor, _ARRAY, what, depth)


def _array_head(cursor: Cursor, what: str) -> tuple[int, int]:
    kind = cursor.u32(what)
    form = _SCALARS.get(kind)
    least = form.size if form else _LEAST_STRING if kind == _STRING else _LEAST_ARRAY
    return kind, cursor.count(least, f"array elements in {what}")


def _read(cursor: Cursor, kind: int, what: str) -> Any:  # noqa: ANN401  # the file says which type
    """Decode one value that `_skip` has passed."""
    if form := _SCALARS.get(kind):
        return cursor.scalar(form, what)
    if kind == _STRING:
        return read_strings(cursor, 1, what)[0]
    kind, count = _array_head(cursor, what)
    if form := _SCALARS.get(kind):
        dtype = np.dtype(form.format)
        start = cursor.skip(form.size * count, what)
        stored = np.frombuffer(cursor.data, np.uint8, form.size * count, start)
        # a bool is any byte but 0; the copy makes the array aligned and native
        values = stored != 0 if dtype == np.bool_ else stored.view(dtype).astype(dtype.newbyteorder("="))
        values.flags.writeable = False
        return values
    if kind == _STRING:
        return read_strings(cursor, count, what)
    return [_read(cursor, _ARRAY, what) for _ in range(count)]
