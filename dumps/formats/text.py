"""Text files of numbers, one tensor a file, as an engine prints them when nothing better is at hand.

Numbers stand one a line, or several separated by spaces, commas or semicolons; brackets are read over, so that what
Rust's ``{:?}`` or numpy's ``print`` writes is read too. Lines that begin with ``#`` are comments, of which two mean
something: ``# shape: 3x4`` (or ``3, 4``, or ``[3, 4]``) and ``# dtype: f64``.

Without a shape, lines of equally many numbers are rows, and all else is one axis. Without a dtype, numbers are
float32 if none has more than nine significant digits, which is what a float32 needs to be read back as it was,
and float64 otherwise.
"""

from __future__ import annotations

import array
import math
import re
from typing import TYPE_CHECKING

import numpy as np

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.tensors import Held, form_of

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = (".txt", ".csv", ".dat")

_SEPARATORS = bytes.maketrans(b",;[]()", b"      ")
_HEADER = re.compile(rb"#\s*(shape|dtype)\s*[:=]\s*(.{1,200}?)\s*", re.IGNORECASE)
_SHAPE = re.compile(r"[\[(]?\s*[0-9]{1,18}(?:(?:\s*[x×,*]\s*|\s+)[0-9]{1,18})*\s*,?\s*[\])]?")
# Ten significant digits, more than a float32 has. Trailing zeros are none: Rust prints 1e15 with all of them.
_LONG = re.compile(rb"[1-9](?:\.?[0-9]){8,}?\.?[1-9]")
_WORD = re.compile(rb"[+-]?(?:[0-9.]+(?:[eE][+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)
_DTYPES = {"f16": "f32", "f32": "f32", "bf16": "f32", "f64": "f64", "float32": "f32", "float64": "f64"}


def open_text(path: Path) -> Held:
    """Read a text of numbers. It is read at once, because its shape is not known before.

    Raises
    ------
    TraceError
        With the line that holds something else than numbers, or if there are none or not as many as said.
    """
    said: dict[str, str] = {}
    values = array.array("d")
    widths: list[int] = []
    long = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.lstrip().startswith(b"#"):
                    if found := _HEADER.fullmatch(text.strip()):
                        said[found[1].decode().lower()] = found[2].decode("utf-8", "replace")
                    continue
                words = text.translate(_SEPARATORS).split()
                values.extend(_number(word, path, number) for word in words)
                long = long or _LONG.search(text) is not None
                if words:
                    widths.append(len(words))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not values:
        raise TraceError(f"{path}: holds no number")
    dtype = _dtype(path, said.get("dtype"), long=long)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it was where it came from
        flat = np.frombuffer(values, np.float64).astype(np.float32 if dtype == "f32" else np.float64)
    return Held(flat.reshape(_shape(path, said.get("shape"), widths)), dtype)


def _number(word: bytes, path: Path, line: int) -> float:
    if not _WORD.fullmatch(word):  # float() reads more than that: underscores, for one
        raise TraceError(f"{path}: line {line}: {_seen(word)} is no number{_hint(word)}")
    try:
        return float(word)
    except ValueError:
        raise TraceError(f"{path}: line {line}: {_seen(word)} is no number{_hint(word)}") from None


def _seen(word: bytes) -> str:
    return shown(word.decode("utf-8", "replace"))


def _hint(word: bytes) -> str:
    if b"\0" in word:
        return ": this is no UTF-8 text; values in binary need a trace.json that names dtype and shape"
    if word.startswith(b"..."):
        return ": values were left out when it was printed; print all of them"
    return "; write the numbers only, and anything else on lines that begin with '#'"


def _dtype(path: Path, said: str | None, *, long: bool) -> str:
    if said is None:
        return "f64" if long else "f32"
    if said.lower() not in _DTYPES:
        raise TraceError(f"{path}: dtype {shown(said)} of a text is not known: write one of {', '.join(_DTYPES)}")
    return _DTYPES[said.lower()]


def _shape(path: Path, said: str | None, widths: list[int]) -> tuple[int, ...]:
    count = sum(widths)
    if said is None:
        rows, width = len(widths), widths[0]
        return (rows, width) if rows > 1 and width > 1 and set(widths) == {width} else (count,)
    if not _SHAPE.fullmatch(said):
        raise TraceError(f"{path}: shape {shown(said)} is not understood: write it like '# shape: 3x4'")
    shape = form_of("f64", [int(side) for side in re.findall(r"[0-9]+", said)], f"{path}: the text").shape
    if math.prod(shape) != count:
        raise TraceError(f"{path}: has {count:,} numbers, and shape {shown(shape)} has {math.prod(shape):,}")
    return shape
