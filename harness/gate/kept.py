"""What a gate keeps of a case: its result, by which it need not be judged again.

It lies in ``case.json`` beside the case's ``verdict.json``, and is written last, whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from firstdiff.dumps import TraceError
from firstdiff.dumps.strict_json import MAX_JSON, parse_object
from firstdiff.engines.identity import Identity
from firstdiff.gate.config import GateCase, GateConfig
from firstdiff.runs.folder import FILE, keep
from firstdiff.verdict.gated import Checked
from firstdiff.verdict.provenance import ran
from firstdiff.verdict.reading import read_verdict
from firstdiff.verdict.records import record_of
from firstdiff.verdict.writing import strict

KEPT = "case.json"
FORMAT, VERSION = "firstdiff-case", 1


def key_of(case: GateCase, config: GateConfig, said: Identity, baseline: Path | None, **options: object) -> str:
    """A hash of all that decides what comes out of a case: files, options, versions. Of an engine it is the command.

    Files are told by their contents; those of a trace by their sizes and times, since they may be large.
    """
    of = {
        "case": case.name,
        "model": said.sha256,
        "prompt": None if case.prompt is None else asdict(case.prompt),
        "decode": case.decode,
        "command": case.command,
        "trace": None if case.trace is None else list(_files(case.trace)),
        "limits": asdict(config.limits),
        "names": _contents(Path(config.names)) if config.names and Path(config.names).is_file() else config.names,
        "timeout": config.timeout,
        "baseline": None if baseline is None else _contents(baseline),
        "versions": ran(()),
        **options,
    }
    return hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()


def _contents(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def _files(trace: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of every file of a trace."""
    with contextlib.suppress(OSError):
        for path in sorted(trace.rglob("*")) if trace.is_dir() else [trace]:
            if path.is_file():
                stat = path.stat()
                yield path.relative_to(trace.parent).as_posix(), stat.st_size, stat.st_mtime_ns


def keep_case(folder: Path, checked: Checked, key: str) -> None:
    """Write what came out of a case into its folder, where its verdict lies.

    Raises
    ------
    CaptureError
        Where it cannot be written.
    """
    told = {f: v for f, v in _fields(checked).items() if f not in ("verdict", "resumed")}
    record = {"format": FORMAT, "version": VERSION, "key": key, "judged": checked.verdict is not None, **told}
    text = json.dumps(strict(record), indent=1, allow_nan=False) + "\n"
    keep(folder / KEPT, text)


def _fields(checked: Checked) -> dict[str, Any]:
    return {name: getattr(checked, name) for name in Checked.__slots__}


def kept_case(folder: Path, key: str | None = None) -> Checked:
    """Read what came out of a case; with `key`, of the very one.

    Raises
    ------
    TraceError
        In one line, where there is no such result, or one that cannot be read.
    """
    path = folder / KEPT
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise TraceError(f"{path}: cannot be read ({e.strerror})") from None
    told = parse_object(raw, str(path), most=MAX_JSON)
    if (told.pop("format", None), told.pop("version", None)) != (FORMAT, VERSION):
        raise TraceError(f"{path}: is no result of a case that this firstdiff reads")
    made, judged = told.pop("key", None), told.pop("judged", None)
    if key is not None and made != key:
        raise TraceError(f"{path}: is of another model, prompt, option or version")
    checked = record_of(path, Checked, told | {"verdict": None})
    return replace(checked, verdict=read_verdict(folder / FILE) if judged else None, resumed=True)
