"""The one error that reading or writing a trace raises, and how untrusted values appear in it."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 80  # characters: a name stays whole, a line stays a line


class TraceError(ValueError):
    """A trace cannot be read or written.

    The message is one line: the path first, then what is wrong and where, both values, and what to do.
    """


def shown(value: object) -> str:
    """Return a short representation of an untrusted value, escaped and on one line."""
    return _SHORT.repr(value)
