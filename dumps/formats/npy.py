"""npy files: one array, as ``numpy.save`` writes it.

The format is that of https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html: magic and version, the
length of a header, a Python dictionary of three entries as text, then the bytes. The text is matched and not
evaluated, not even as literals: nothing but those three entries can be in it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from firstdiff.dumps.errors import PickleError, TraceError, shown
from firstdiff.dumps.tensors import RAW, Form, LoneFile, Stored, form_of, size_of

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # bytes of text, numpy's own limit; one of eight sides has some 200
HEAD = 12 + MAX_HEADER
"""Bytes from the start of a file in which every header that is read ends."""

_ENTRY = re.compile(
    r"""\s*(?P<quote>['"])(?P<key>descr|fortran_order|shape)(?P=quote)\s*:\s*
    (?P<value>'[^'\\]*'|"[^"\\]*"|True|False|\([0-9L,\s]*\)|\[.*\])\s*(?:,|(?=\}))""",
    re.VERBOSE | re.DOTALL,
)
_DESCR = re.compile(r"(?P<end>[<>|=]?)(?P<kind>[a-zA-Z?])(?P<bytes>[0-9]{0,3})")
_SIDE = re.compile(r"[0-9]{1,19}L?")
_KEYS = {"descr", "fortran_order", "shape"}


def open_npy(path: Path, dtype: str | None = None) -> Stored:
    """Find the array of a npy file.

    Parameters
    ----------
    path
        The file.
    dtype
        What its values are, where the header cannot say: ``bf16`` or an 8-bit float for raw or unsigned ones.

    Raises
    ------
    TraceError
        If it is damaged, cut short, a pickle, or of a dtype that is not read.
    """
    size = size_of(path)
    try:
        with path.open("rb") as file:
            raw = file.read(HEAD)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    form, begin = read_head(raw, size, str(path), dtype)
    return Stored(LoneFile(path), form, begin)


def read_head(raw: bytes, size: int, where: str, dtype: str | None = None) -> tuple[Form, int]:
    """Read the header of an array.

    Parameters
    ----------
    raw
        The first `HEAD` bytes, or all of them if there are fewer.
    size
        Bytes in all.
    where
        What is read, path first: the start of an error message.
    dtype
        As in `open_npy`.

    Returns
    -------
    The form, and the offset at which the values begin.
    """
    if raw[:1] == b"\x80" and raw[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise PickleError(where, instead=_INSTEAD)
    if raw[:6] != MAGIC or len(raw) < 10:  # noqa: PLR2004 - magic, version and the shortest length
        raise TraceError(f"{where}: begins with {shown(raw[:6])} and not with {MAGIC!r}: it is no npy file")
    if raw[6] not in (1, 2):
        raise TraceError(f"{where}: npy version {raw[6]}.{raw[7]} is not read, only 1 and 2: save it with numpy.save")
    start = 10 if raw[6] == 1 else 12
    length = int.from_bytes(raw[8:start], "little")
    if length > MAX_HEADER:
        raise TraceError(f"{where}: its header has {length:,} bytes, and at most {MAX_HEADER:,} are read")
    begin = start + length
    if begin > size:
        raise TraceError(f"{where}: is cut short within its header: {size:,} of {begin:,} bytes")
    form = _form(raw[start:begin].decode("latin-1"), where, dtype)
    if begin + form.size != size:
        what = "is cut short" if begin + form.size > size else "goes on after its array"
        raise TraceError(
            f"{where}: {what}: shape {shown(form.shape)} of {form.dtype} takes {form.size:,} bytes after the "
            f"header, and {size - begin:,} are there: save that array again, one to a file"
        )
    return form, begin


_INSTEAD = "save numbers, such as numpy.save(path, x.astype(numpy.float32))"


def _form(text: str, where: str, dtype: str | None) -> Form:
    """Match the dictionary of a header."""
    inner = text.strip()
    entries: dict[str, str] = {}
    at = 1
    while found := _ENTRY.match(inner, at):
        entries[found["key"]] = found["value"]
        at = found.end()
    if inner[:1] != "{" or inner[at:].strip() != "}" or entries.keys() != _KEYS:
        raise TraceError(f"{where}: its header {shown(text)} is damaged: save the array again with numpy.save")
    sides = [side.strip() for side in entries["shape"][1:-1].split(",")]
    sides = sides[:-1] if not sides[-1] else sides  # "()", "(3,)"
    sound = entries["fortran_order"] in ("True", "False") and entries["descr"][0] in "'\"["
    if not sound or entries["shape"][0] != "(" or not all(map(_SIDE.fullmatch, sides)):
        raise TraceError(f"{where}: its header {shown(text)} is damaged: save the array again with numpy.save")
    name, big_endian = _dtype(entries["descr"], where, dtype)
    shape = [int(side.rstrip("L")) for side in sides]  # Python 2 wrote 3L
    return form_of(
        name, shape, f"{where}: its array", fortran=entries["fortran_order"] == "True", big_endian=big_endian
    )


def _dtype(descr: str, where: str, named: str | None) -> tuple[str, bool]:
    """Return the stored dtype that a header's ``descr`` means, and whether it is big-endian."""
    if descr[0] == "[":
        raise TraceError(f"{where}: is a structured array of several fields: save each as an array of its own")
    found = _DESCR.fullmatch(descr[1:-1])
    kind, width = (found["kind"], int(found["bytes"] or 1)) if found else ("", 0)
    if kind == "O":
        raise PickleError(where, "holds Python objects, which is a pickle", _INSTEAD)
    big = bool(found and found["end"] == ">")
    plain = "bool" if kind in "b?" and width == 1 else f"{kind}{8 * width}"
    if kind in ("V", "u") and named in RAW and width == RAW[named].itemsize and named[0] != "i":
        return named, big
    if plain in RAW and named in (None, plain):
        return plain, big
    if kind == "V" and width in (1, 2):
        meant = "bf16" if width == 2 else "f8_e4m3 or f8_e5m2"  # noqa: PLR2004 - bytes
        raise TraceError(
            f"{where}: dtype {shown(descr[1:-1])} says only that a value has {width} bytes: name the dtype ({meant}) "
            "in trace.json, or save x.astype(numpy.float32)"
        )
    said = "" if named is None else f" as {named}"
    raise TraceError(f"{where}: dtype {shown(descr[1:-1])} cannot be read{said}: save it as one of {', '.join(RAW)}")
