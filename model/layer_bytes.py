"""Which bytes of a model's file each layer needs: a machine that judges some layers can do with those."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from firstdiff.model.engine import Model

GAP = 64  # bytes that alignment may leave between tensors


def bytes_of(model: Model) -> dict[str, dict[str, list[tuple[int, int]]]]:
    """Which bytes each layer needs, of each file.

    Every layer needs those under ``outside`` too: what stands before the tensors, tensors outside the layers, and
    vectors, by which the dump is checked.
    """
    gguf = model.gguf
    starts = {path: mapped.ctypes.data for path, mapped in gguf.mapped.items()}
    needed: dict[str, dict[str, list[tuple[int, int]]]] = {"outside": {}}
    for name, info in gguf.tensors.items():
        raw = gguf.raw(name)
        path = max((p for p in starts if starts[p] <= raw.ctypes.data), key=starts.__getitem__)
        start = raw.ctypes.data - starts[path]
        layer = name.split(".")[1] if name.startswith("blk.") and len(info.shape) > 1 else "outside"
        needed.setdefault(layer, {}).setdefault(str(path), []).append((start, start + raw.size))
    for path, header in _headers(model).items():
        needed["outside"].setdefault(str(path), []).append(header)
    return {layer: {path: _joined(of) for path, of in files.items()} for layer, files in needed.items()}


def _headers(model: Model) -> dict[Path, tuple[int, int]]:
    """Of each file, where what stands before the tensors begins and ends."""
    gguf = model.gguf
    found = {}
    for path, mapped in gguf.mapped.items():
        base = mapped.ctypes.data
        places = (gguf.raw(name).ctypes.data - base for name in gguf.tensors)
        found[path] = (0, min((at for at in places if 0 <= at < mapped.size), default=mapped.size))
    return found


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that touch made one."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1] + GAP:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found


def header_of(model: Model) -> str:
    """A digest of what stands before the tensors, and of the size of each file."""
    of = hashlib.sha256()
    for path, (start, stop) in _headers(model).items():
        mapped = model.gguf.mapped[path]
        of.update(mapped[start:stop].tobytes() + str(mapped.size).encode())
    return of.hexdigest()
