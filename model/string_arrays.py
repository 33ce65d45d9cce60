"""Finding the end of an array of strings without walking it one string at a time.

A GGUF string is its length, 8 bytes little-endian, and its bytes. An array of a hundred thousand of
them has no index, and a walk in Python takes longer than the rest of opening the file. But in a
vocabulary nearly every length is below 256, so it shows as a non-zero byte followed by seven zeros, and
numpy finds all such places at once. They are only guesses until each is seen to lead to the next:
a place reached from the array's start by steps of "8 plus length" alone *is* a string's start, however
it was guessed. Where the guesses do not link up (an empty string, a NUL in a string, a string of 256
bytes or more), the walk goes on step by step up to the next guess.
"""

import numpy as np
import numpy.typing as npt

from firstdiff.model.cursor import Cursor

_LENGTH = 8  # bytes of a string's length prefix
_GUESS = 12  # bytes a string of a vocabulary takes, length included; short, so as not to read past the array
_LEAST_WINDOW = 1 << 12
_GREATEST_WINDOW = 1 << 20  # keeps the index arrays within a few megabytes


def skip_strings(cursor: Cursor, count: int, what: str) -> None:
    """Move the cursor past `count` length-prefixed strings.

    Parameters
    ----------
    cursor
        Stands at the first string's length.
    count
        Number of strings.
    what
        What the strings are, for messages.

    Raises
    ------
    ModelError
        If a string ends past the end of the file.
    """
    while count:
        size = min(max(count * _GUESS, _LEAST_WINDOW), _GREATEST_WINDOW, cursor.left)
        if size > _LENGTH:
            count = _skip_window(cursor, count, size, what)
        else:
            cursor.skip(cursor.u64(what), what)
            count -= 1


def read_strings(cursor: Cursor, count: int, what: str) -> list[str]:
    """Read `count` length-prefixed strings; bytes that are not UTF-8 become U+FFFD."""
    strings = []
    for _ in range(count):
        nbytes = cursor.u64(what)
        start = cursor.skip(nbytes, what)
        strings.append(cursor.data[start : cursor.pos].decode(errors="replace"))
    return strings


def _skip_window(cursor: Cursor, count: int, size: int, what: str) -> int:
    """Skip the strings that start within the next `size` bytes; return how many strings are left."""
    start = cursor.pos
    window = np.frombuffer(cursor.data, np.uint8, size, start)
    places = _short_lengths(window)
    nexts = places + _LENGTH + window[places]
    ends = np.flatnonzero(nexts[:-1] != places[1:])  # the links that do not lead to the next place
    ends = np.append(ends, len(places) - 1)
    while count and (here := cursor.pos - start) < size:
        at = int(np.searchsorted(places, here))
        if at < len(places) and places[at] == here:
            end = min(int(ends[np.searchsorted(ends, at)]), at + count - 1)
            cursor.skip(int(nexts[end]) - here, what)
            count -= end - at + 1
        else:
            until = int(places[at]) if at < len(places) else size
            while count and cursor.pos - start < until:
                cursor.skip(cursor.u64(what), what)
                count -= 1
    return count


def _short_lengths(window: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Return where a non-zero byte is followed by seven zeros, ascending."""
    zero = window == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven = four[:-3] & four[3:]
    return np.flatnonzero(seven[1:] & ~zero[: len(seven) - 1])
