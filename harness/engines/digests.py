"""SHA-256 of model files. Of large ones it is kept: reading one takes longer than running it on a short prompt."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

LARGE = 1 << 28
"""Bytes from which a file's digest is kept: smaller ones are read within a second."""

MOST = 256
"""Digests that are kept, the last ones."""

SETTLED = 2_000_000_000
"""Nanoseconds since a file's last change, before which it may change once more without its times telling."""


def digest(path: Path) -> bytes:
    """The SHA-256 of a file, which is read once as long as it does not change.

    Kept digests lie in ``$XDG_CACHE_HOME/firstdiff/sha256.json``, ``~/.cache`` by default, by the file's place and
    times. Where they cannot be read or written, the file is read.
    """
    stat = path.stat()
    return _digest(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


@lru_cache(maxsize=64)
def _digest(path: Path, version: tuple[int, ...]) -> bytes:
    _, _, size, *times = version
    if size < LARGE:
        return _read(path)
    key = ":".join(map(str, version))
    kept = _kept()
    if key in kept:
        return bytes.fromhex(kept[key])
    found = _read(path)
    if time.time_ns() - max(times) > SETTLED:
        _keep(kept | {key: found.hex()})
    return found


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firstdiff" / "sha256.json"


def _kept() -> dict[str, str]:
    with suppress(OSError, ValueError, RuntimeError):  # no home
        kept = json.loads(_place().read_text())
        if isinstance(kept, dict):
            return {key: of for key, of in kept.items() if isinstance(of, str) and _is_digest(of)}
    return {}


def _is_digest(text: str) -> bool:
    return len(text) == 2 * hashlib.sha256().digest_size and all(c in "0123456789abcdef" for c in text)


def _keep(digests: dict[str, str]) -> None:
    with suppress(OSError, RuntimeError):
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f"{place.name}.{os.getpid()}")
        part.write_text(json.dumps(dict(list(digests.items())[-MOST:])))
        part.replace(place)
