"""Dumps of one file a tensor: npy, or text of numbers, alone or in folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from firstdiff.dumps.errors import PickleError, TraceError
from firstdiff.dumps.formats import text
from firstdiff.dumps.formats.npy import open_npy
from firstdiff.dumps.formats.text import open_text
from firstdiff.dumps.listing import Entry, Listing, by_step
from firstdiff.dumps.manifest import Manifest
from firstdiff.dumps.site import check_key
from firstdiff.dumps.spelling import spelled, stem
from firstdiff.dumps.tensors import Tensor

SUFFIXES = (".npy", *text.SUFFIXES)


def list_tensors(root: Path, manifest: Manifest, files: Iterable[tuple[str, Path]]) -> Listing:
    """List files of one tensor each, by their path inside the dump.

    A file that cannot be read is left out with a note: a text may be somebody's notes, and an array cut short where
    the engine crashed.

    Raises
    ------
    TraceError
        If none can be read, or one is a pickle.
    """
    entries: list[Entry] = []
    left_out: list[TraceError] = []
    complete = True
    for inside, path in files:
        try:
            found = spelled(stem(inside))
            _check_name(path, found.name)
            entries.append(Entry(found.step or 0, found.name, open_tensor(path), path))
        except PickleError:
            raise
        except TraceError as error:
            left_out.append(error)
            complete = complete and path.suffix != ".npy"
    if left_out and not entries:
        raise left_out[0]
    notes = [f"left out: {error}" for error in left_out[:_NOTES]]
    if len(left_out) > _NOTES:
        notes.append(f"left out: {len(left_out) - _NOTES:,} more files that cannot be read")
    return by_step(root, entries, manifest, notes=notes, complete=complete)


_NOTES = 5
"""How many files are named that cannot be read."""


def open_tensor(path: Path, dtype: str | None = None) -> Tensor:
    """Find the tensor in a file; `dtype` is what a npy header cannot say."""
    return open_npy(path, dtype) if path.suffix == ".npy" else open_text(path)


def _check_name(path: Path, name: str) -> None:
    try:
        check_key(name)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
