"""Dumps whose manifest lists each tensor: values in binary, or arrays whose headers cannot say their dtype.

.. code-block:: json

    {"steps": [{"tokens": [1, 29896]}],
     "tensors": [{"file": "dump.bin", "offset": 4096, "dtype": "bf16", "shape": [2, 2048], "name": "their.3.q"},
                 {"file": "k.f32", "dtype": ">f4", "shape": [2, 256], "step": 0, "layer": 3, "point": "Kcur"}]}

Without ``name`` and ``point`` the file's name is the tensor's. Binary values are row-major.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from firstdiff.dumps import single_files
from firstdiff.dumps.errors import PickleError, TraceError, shown
from firstdiff.dumps.listing import Entry, Listing, by_step
from firstdiff.dumps.manifest import Manifest
from firstdiff.dumps.site import Site, check_key
from firstdiff.dumps.spelling import spelled, stem
from firstdiff.dumps.tensors import RAW, LoneFile, MappedFile, Stored, Tensor, form_of, size_of

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")

# Names of dtypes beside our own. "i8" alone is ours, of eight bits; with a byte order it is numpy's, of eight bytes.
_DTYPES = {
    **{name: name for name in RAW},
    **{f"{long}{bits}": f"{long[0]}{bits}" for long in ("float", "int", "uint") for bits in (16, 32, 64)},
    "float": "f32", "double": "f64", "half": "f16", "int8": "i8", "uint8": "u8", "f2": "f16", "f4": "f32",
    "fp16": "f16", "fp32": "f32", "fp64": "f64", "bfloat16": "bf16", "e4m3": "f8_e4m3", "e5m2": "f8_e5m2",
    "float8_e4m3": "f8_e4m3", "float8_e4m3fn": "f8_e4m3", "f8_e4m3fn": "f8_e4m3", "float8_e5m2": "f8_e5m2",
}  # fmt: skip
_NUMPY = re.compile(r"[<>|=]([fiu])([1248])")


@dataclass(frozen=True, slots=True)
class _Listed:
    """One entry of a manifest, checked in itself but not against its file."""

    file: str
    name: str
    step: int
    dtype: str | None
    big_endian: bool
    shape: object
    offset: int | None


def list_listed(root: Path, manifest_path: Path, manifest: Manifest) -> Listing:
    """List what a manifest lists.

    Raises
    ------
    TraceError
        If an entry is not sound, leads out of the folder, or does not fit its file.
    """
    listed = []
    for index, entry in enumerate(manifest.tensors or ()):
        try:
            listed.append(_listed(entry))
        except TraceError as error:
            raise TraceError(f"{manifest_path}: tensor {index}: {error}") from None
    uses = Counter(str(PurePosixPath(entry.file)) for entry in listed)
    mapped: dict[Path, MappedFile] = {}
    entries = []
    for entry in listed:
        path = inside(root, entry.file, manifest_path)
        alone = uses[str(PurePosixPath(entry.file))] == 1
        entries.append(Entry(entry.step, entry.name, _open(path, entry, mapped, alone=alone), path))
    return by_step(root, entries, manifest)


def inside(root: Path, file: str, said_in: Path) -> Path:
    """Return the path of a file that a manifest names, which must lie in the manifest's folder, links followed.

    Raises
    ------
    TraceError
        If it does not, or is not there.
    """
    parts = PurePosixPath(file).parts
    if not parts or PurePosixPath(file).is_absolute() or ".." in parts or "\\" in file or not file.isprintable():
        raise TraceError(f"{said_in}: the file {shown(file)} must be a path inside the folder, such as 'step1/q.bin'")
    path = root.joinpath(*parts)
    try:
        within = path.resolve(strict=True).is_relative_to(root.resolve(strict=True))
    except FileNotFoundError:
        raise TraceError(f"{path}: there is no such file, and {said_in.name} lists it") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read: {shown(str(error))}") from None
    if not within:
        raise TraceError(f"{path}: is a link that leads out of the folder: put the file itself there")
    return path


def _listed(entry: Any) -> _Listed:  # noqa: ANN401 - of a JSON file
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
        raise TraceError(f"must be an object with 'file', not {shown(entry)}")
    file: str = entry["file"]
    found = spelled(stem(file)) if file else spelled("")
    name = entry.get("name", found.name)
    if "point" in entry:
        if "name" in entry or not isinstance(entry["point"], str):
            raise TraceError(f"'point' must be a text, and stand in place of 'name', not {shown(entry['point'])}")
        layer = entry.get("layer")
        name = Site(0, None if layer is None else _count(layer, "layer", 10**6), entry["point"]).key
    elif "layer" in entry:
        raise TraceError("'layer' belongs with 'point': a 'name' says its layer itself")
    check_key(name)
    step = _count(entry.get("step", found.step or 0), "step", 10**6)
    offset = None if entry.get("offset") is None else _count(entry["offset"], "offset", 2**63)
    dtype, big_endian = (None, False) if entry.get("dtype") is None else _dtype(entry["dtype"])
    return _Listed(file, name, step, dtype, big_endian, entry.get("shape"), offset)


def _count(value: object, what: str, most: int) -> int:
    if type(value) is not int or not 0 <= value < most:
        raise TraceError(f"{what!r} must be a whole number from 0 on, not {shown(value)}")
    return value


def _dtype(value: object) -> tuple[str, bool]:
    """Return the stored dtype that a manifest names, and whether it is big-endian: ``bfloat16``, ``F32``, ``>f4``."""
    text = value.lower() if isinstance(value, str) else ""
    found = _NUMPY.fullmatch(text)
    plain = f"{found[1]}{8 * int(found[2])}" if found else text.removeprefix("torch.").lstrip("<>|=")
    if plain not in _DTYPES:
        float8 = plain in ("f8", "float8", "fp8")
        hint = "say f8_e4m3, f8_e5m2 or f64" if float8 else f"write one of {', '.join(RAW)}"
        raise TraceError(f"dtype {shown(value)} is not known: {hint}")
    return _DTYPES[plain], text[:1] == ">"


def _open(path: Path, entry: _Listed, mapped: dict[Path, MappedFile], *, alone: bool) -> Tensor:
    if path.suffix in single_files.SUFFIXES:
        return _self_described(path, entry)
    if path.suffix in PICKLES:
        raise PickleError(path)
    size = size_of(path)
    where = f"{path}: tensor {shown(entry.name)}"
    if entry.dtype is None or entry.shape is None:
        raise TraceError(f"{where} needs 'dtype' and 'shape' in the manifest, as its bytes do not say them")
    form = form_of(entry.dtype, entry.shape, where, big_endian=entry.big_endian)
    begin = entry.offset or 0
    end = begin + form.size
    if end > size or (alone and entry.offset is None and end != size):
        raise TraceError(
            f"{where} takes bytes {begin:,} to {end:,} (shape {shown(form.shape)} of {form.dtype}), and the file has "
            f"{size:,}: correct dtype, shape or 'offset'"
        )
    return Stored(LoneFile(path) if alone else mapped.setdefault(path, MappedFile(path, size)), form, begin)


def _self_described(path: Path, entry: _Listed) -> Tensor:
    tensor = single_files.open_tensor(path, entry.dtype)
    if entry.offset:
        raise TraceError(f"{path}: its tensor has no offset, for the file says itself where it begins: leave that out")
    shape: Sequence[int] | None = entry.shape if isinstance(entry.shape, list) else None
    if entry.shape is not None and (shape is None or tuple(shape) != tensor.shape):
        raise TraceError(f"{path}: has shape {shown(tensor.shape)}, and {shown(entry.shape)} in the manifest")
    return tensor
