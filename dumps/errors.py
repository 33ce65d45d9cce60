"""The errors that reading or writing a trace raises, and how untrusted values appear in them."""

from __future__ import annotations

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 80  # characters: a name stays whole, a line stays a line


class TraceError(ValueError):
    """A trace cannot be read or written.

    The message is one line: the path first, then what is wrong and where, both values, and what to do.
    """


class PickleError(TraceError):
    """A file is a pickle, which is never read: not even to leave it out."""

    def __init__(self, path: object, what: str = "is a pickle", instead: str = "") -> None:
        do = instead or "save the tensors with safetensors.torch.save_file"
        super().__init__(f"{path}: {what}, and reading one runs whatever code is in it, so firstdiff never does: {do}")


def shown(value: object) -> str:
    """Return a short representation of an untrusted value, escaped and on one line."""
    return _SHORT.repr(value)
