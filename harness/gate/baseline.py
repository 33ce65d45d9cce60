"""Baselines: what was said of each site when all was as it should be, small enough to be committed.

A file a case, a line a site: its status, local error and floor, the root mean square and a hash of the candidate's
tensor. No tensor is kept, and the same trace gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np

from firstdiff.dumps import Site, Trace, TraceError
from firstdiff.dumps.strict_json import parse_object
from firstdiff.engines.identity import Identity
from firstdiff.verdict import Status, Verdict
from firstdiff.verdict.gated import Changes, Moved
from firstdiff.verdict.writing import strict

FORMAT, VERSION = "firstdiff-baseline", 1

GROWN = 2.0
"""By which factor a diverging site's error must grow, or shrink, to be said to. Two correct builds of one engine that
has one bug show errors that differ by up to 1.1 there (tests/gate/test_gate.py,
`test_a_bug_is_as_large_in_every_build`)."""

RIGHT = (Status.AGREES, Status.INHERITS)
JUDGED = (*RIGHT, Status.DIVERGES)
COLUMNS = ("status", "error", "floor", "rms", "hash")


@dataclass(frozen=True, slots=True)
class Was:
    """One site of a baseline."""

    status: str
    error: float | None
    floor: float | None
    rms: float | None
    hash: str | None


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is kept of a case.

    `made_by` is firstdiff's version, `prompt` is step 0's tokens.
    """

    made_by: str
    model: Identity
    prompt: tuple[int, ...]
    sites: dict[Site, Was]


def baseline_of(verdict: Verdict, trace: Trace, model: Identity, *, made_by: str) -> Baseline:
    """What shall be kept of a verdict and of the candidate's trace."""
    sites = {}
    for s in verdict.sites:
        rms, digest = _tensor(trace, s.site)
        sites[s.site] = Was(s.status.value, _short(s.local_error), _short(s.floor), rms, digest)
    prompt = verdict.tokens[0] if verdict.tokens else ()
    return Baseline(made_by, model, tuple(prompt), sites)


def _tensor(trace: Trace, site: Site) -> tuple[float | None, str | None]:
    if site not in trace:
        return None, None
    x = trace[site]
    with np.errstate(all="ignore"):
        rms = float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0
    digest = hashlib.sha256(repr(x.shape).encode() + np.ascontiguousarray(x).tobytes()).hexdigest()
    return _short(rms), digest[:16]


def _short(x: float | None) -> float | None:
    """A number in three digits: more would say that the last ones matter."""
    return None if x is None else float(f"{x:.3g}")


def to_text(baseline: Baseline) -> str:
    """The file's text: a line a site, ending in a newline. The same baseline gives the same bytes."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "firstdiff": baseline.made_by,
        "model": baseline.model.stated,
        "prompt": list(baseline.prompt),
        "columns": list(COLUMNS),
    }
    top = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in head.items())
    rows = (
        f"  {json.dumps(str(site))}: {json.dumps(strict([w.status, w.error, w.floor, w.rms, w.hash]), allow_nan=False)}"
        for site, w in baseline.sites.items()
    )
    return "{\n" + top + ',\n "sites": {\n' + ",\n".join(rows) + "\n }\n}\n"


AGAIN = "make it again with --force-regen"


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises
    ------
    TraceError
        For a file that cannot be read, is no baseline, is damaged, or is of another version.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise TraceError(f"{path}: the baseline cannot be read ({e.strerror})") from None
    data = parse_object(raw, f"{path}: the baseline")
    if data.get("format") != FORMAT:
        raise TraceError(f"{path}: is no baseline (its format is {data.get('format')!r:.60}, not {FORMAT!r}): {AGAIN}")
    if data.get("version") != VERSION:
        raise TraceError(
            f"{path}: is a baseline of version {data.get('version')!r:.20}, made by firstdiff "
            f"{data.get('firstdiff')!s:.40}, and version {VERSION} is read: {AGAIN}"
        )
    try:
        return _parsed(data)
    except (AttributeError, KeyError, TypeError, ValueError, TraceError) as e:
        raise TraceError(f"{path}: the baseline is damaged ({type(e).__name__}: {e!s:.120}): {AGAIN}") from None


def _parsed(data: dict[str, Any]) -> Baseline:
    if tuple(data["columns"]) != COLUMNS:
        raise ValueError(f"columns {data['columns']!r:.80}")
    model = Identity(data["model"]["file"], data["model"]["sha256"])
    if not all(isinstance(x, str) for x in (data["firstdiff"], model.file, model.sha256)):
        raise TypeError("firstdiff, file and sha256 must be texts")
    return Baseline(
        data["firstdiff"],
        model,
        tuple(map(int, data["prompt"])),
        {Site.parse(site): _was(*row) for site, row in data["sites"].items()},
    )


def _was(status: str, error: object, floor: object, rms: object, digest: str | None) -> Was:
    if digest is not None and not isinstance(digest, str):
        raise TypeError("a hash must be a text")
    return Was(Status(status).value, _number(error), _number(floor), _number(rms), digest)


def _number(value: object) -> float | None:
    """A number as :func:`firstdiff.verdict.writing.strict` writes it."""
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    if value in ("nan", "inf", "-inf"):
        return float(str(value))
    raise TypeError(f"{value!r:.40} is no number")


def check_model(path: Path, baseline: Baseline, model: Identity) -> None:
    """Refuse a baseline of another model.

    Raises
    ------
    TraceError
        With both files and checksums.
    """
    if baseline.model.sha256 != model.sha256:
        raise TraceError(
            f"{path}: is the baseline of another model ({baseline.model.file}, sha256 "
            f"{baseline.model.sha256:.12}…) than {model.file} (sha256 {model.sha256:.12}…): "
            f"give that model, or {AGAIN}"
        )


def check_prompt(path: Path, baseline: Baseline, tokens: Sequence[int]) -> None:
    """Refuse a baseline of another prompt: its sites have other values, right or wrong.

    Raises
    ------
    TraceError
        With both prompts' first difference.
    """
    was, now = baseline.prompt, tuple(tokens)
    if was != now:
        place = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
        raise TraceError(
            f"{path}: is the baseline of another prompt ({len(was):,} tokens, {list(was[place : place + 3])} at place "
            f"{place}) than this run's ({len(now):,} tokens, {list(now[place : place + 3])} there): {AGAIN}"
        )


def compare(was: Baseline, now: Baseline) -> Changes:
    """Tell worsened, improved, new and vanished sites apart.

    Below its floor an error is rounding, and its size says nothing: such a site neither worsens nor improves.
    """
    worsened, improved, new = [], [], []
    for site, after in now.sites.items():
        before = was.sites.get(site)
        if after.status not in JUDGED:
            continue
        if before is None or before.status not in JUDGED:
            new.append(site)
            continue
        moved = Moved(site, before.status, after.status, before.error, after.error)
        if _is_worse(before, after):
            worsened.append(moved)
        elif _is_worse(after, before):
            improved.append(moved)
    both = [(w.hash, n.hash) for s, n in now.sites.items() if (w := was.sites.get(s)) and w.hash and n.hash]
    return Changes(
        tuple(worsened),
        tuple(improved),
        tuple(new),
        tuple(_vanished(was, now)),
        sum(a == b for a, b in both),
        len(both),
    )


def _is_worse(before: Was, after: Was) -> bool:
    if after.status != Status.DIVERGES:
        return False
    if before.status != Status.DIVERGES:
        return True
    return _size(after.error) > GROWN * _size(before.error)


def _size(error: float | None) -> float:
    """NaN is as wrong as infinity."""
    return inf if error is None or isnan(error) else error


def _vanished(was: Baseline, now: Baseline) -> list[tuple[Site, str]]:
    lost = []
    for site, before in was.sites.items():
        after = now.sites.get(site)
        if before.status in JUDGED and (after is None or after.status not in JUDGED):
            lost.append((site, "not run" if after is None else after.status))
    return lost
