"""Dumps of one file a step, or several parts of one: safetensors and npz."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from firstdiff.dumps.errors import TraceError, shown
from firstdiff.dumps.formats.npz import open_npz
from firstdiff.dumps.formats.safetensors import read_header
from firstdiff.dumps.listing import Entry, Listing, by_step, once, ordered
from firstdiff.dumps.manifest import MANIFEST, Manifest, Recorded
from firstdiff.dumps.site import check_key, whole_numbers
from firstdiff.dumps.spelling import spelled

SUFFIXES = (".safetensors", ".npz")


def list_steps(root: Path, manifest: Manifest, files: Mapping[int, list[Path]]) -> Listing:
    """List the tensors of all steps up to the first that is missing or broken, and note that one.

    Raises
    ------
    TraceError
        If step 0 cannot be read.
    """
    planned = max(files) + 1 if manifest.steps is None else len(manifest.steps)
    if planned == 0:
        raise TraceError(f"{root}: has no readable step: {MANIFEST} lists none")
    entries: list[Entry] = []
    steps: list[Recorded] = []
    notes: list[str] = []
    for index in range(planned):
        if index not in files:
            if not steps:
                raise TraceError(f"{root}: has no readable step: step-000.safetensors is missing")
            notes.append(f"step {index} is missing: {planned} steps are listed, read up to step {index - 1}")
            break
        try:
            found, said = _read(files[index], index, manifest.steps[index] if manifest.steps else Recorded())
        except TraceError as error:
            if not steps:
                raise
            notes.append(f"step {index} is unreadable: {error}; read up to step {index - 1}")
            break
        entries += found
        steps.append(said)
    complete = not notes
    if max(files) >= planned:
        notes.append(f"step {max(files)} is ignored: {MANIFEST} lists {planned} steps, counted from 0")
    return Listing(tuple(entries), tuple(steps), planned, tuple(notes), complete)


def list_npz(path: Path) -> Listing:
    """List a lone npz file, whose members may say their steps: ``Qcur-3@1``, ``step1/Qcur-3``."""
    entries = []
    for member, tensor in open_npz(path).items():
        try:
            found = spelled(member)
            check_key(found.name)
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from None
        entries.append(Entry(found.step or 0, found.name, tensor, path))
    return by_step(path, entries, Manifest())


def _read(files: list[Path], step: int, said: Recorded) -> tuple[list[Entry], Recorded]:
    found: dict[str, Entry] = {}
    for path in files:
        metadata: dict[str, str] = {}
        if path.suffix == ".npz":
            tensors = [Entry(step, _member(path, name, step), tensor, path) for name, tensor in open_npz(path).items()]
        else:
            stored, metadata = read_header(path)
            tensors = [Entry(step, name, tensor, path) for name, tensor in stored.items()]
        for entry in tensors:
            once(found, entry)
        said = Recorded(
            said.tokens if said.tokens is not None else _numbers(path, metadata, "tokens"),
            said.positions if said.positions is not None else _numbers(path, metadata, "positions"),
            said.order,
        )
    return ordered(found, said.order), said


def _member(path: Path, member: str, step: int) -> str:
    try:
        found = spelled(member)
        check_key(found.name)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from None
    if found.step not in (None, step):
        raise TraceError(f"{path}: member {shown(member)} says step {found.step}, and its file step {step}: rename one")
    return found.name


def _numbers(path: Path, metadata: dict[str, str], what: str) -> tuple[int, ...] | None:
    """Read tokens or positions from a file's metadata: ``[1, 29896]`` or ``1 29896``."""
    if what not in metadata:
        return None
    words = re.findall(r"[^\s,\[\]]+", metadata[what])
    try:
        return whole_numbers([int(word) if re.fullmatch(r"[0-9]{1,10}", word) else word for word in words], what[:-1])
    except TraceError as error:
        raise TraceError(f"{path}: its metadata: {error}") from None
