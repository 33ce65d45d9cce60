"""A case beside its baseline: what is worse, better, new or no longer there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from firstdiff.dumps import Site
from firstdiff.errors import CaptureError
from firstdiff.gate.baseline import Baseline, compare, to_text
from firstdiff.gate.limits import sites_are
from firstdiff.runs.folder import write_whole
from firstdiff.verdict.gated import Changes, Moved

NAMED = 4  # sites named one by one in a sentence


def beside(path: Path, was: Baseline | None, now: Baseline, *, regen: bool) -> tuple[list[str], Changes | None]:
    """Compare with the baseline, or write it; why that fails, and what changed.

    Raises
    ------
    CaptureError
        Where it cannot be written.
    """
    if was is None:
        _write(path, to_text(now))
        if regen:
            return [], None
        return [f"There was no baseline: {path} is written now. Look at it, commit it, and run again."], None
    changes = compare(was, now)
    failures = []
    if changes.vanished:
        many = sites_are(len(changes.vanished), " of the baseline")
        failures.append(f"{many} no longer judged: {_named(changes.vanished)}.")
    if changes.worsened:
        names = [(m.site, _moved(m)) for m in changes.worsened]
        failures.append(f"{sites_are(len(names))} worse than in the baseline: {_named(names)}.")
    return failures, changes


def _moved(m: Moved) -> str:
    return f"{m.was}, now {m.now}" if m.was != m.now else f"local error {m.error_was:.2g}, now {m.error:.2g}"


def _named(names: Sequence[tuple[Site, str]]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(f"{site} ({said})" for site, said in names[:NAMED]) + more


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as e:
        raise CaptureError(f"{path}: the baseline cannot be written ({e.strerror})") from e
