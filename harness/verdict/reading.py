"""Reading ``verdict.json`` again, strictly: a report must not claim what no judgement did.

Whatever follows from the sites (the verdict, the first divergence, the coverage) is made anew and held against what
the file says, so that an edited or damaged file is refused and not rendered.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import Any

from firstdiff.dumps import TraceError
from firstdiff.dumps.errors import shown
from firstdiff.dumps.strict_json import parse_object
from firstdiff.verdict.records import UnfitError, record, short
from firstdiff.verdict.sensitivity import misfit
from firstdiff.verdict.sites import Detail, Histogram, Profile, SiteVerdict, Status
from firstdiff.verdict.verdict import Verdict
from firstdiff.verdict.writing import FORMAT, PARTS, VERSION

MOST_BYTES = 1 << 26
"""64 MB. 39,000 sites (SmolLM2, 64 steps) with 6000 closer looks make a file of 20 MB."""

JUDGED = (Status.AGREES, Status.INHERITS, Status.DIVERGES)
ADVICE = "make it again with firstdiff run"


def read_verdict(path: Path) -> Verdict:
    """Read a verdict that :meth:`Verdict.to_json` wrote.

    Raises
    ------
    TraceError
        In one line, where the file cannot be read, is cut short, is of another format or version, holds a value that
        cannot be, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as e:
        raise TraceError(f"{path}: cannot be read ({getattr(e, 'strerror', None) or e})") from None
    found = parse_object(raw, str(path), most=MOST_BYTES)
    _check_format(path, found)
    try:
        return _verdict(found)
    except RecursionError:
        raise TraceError(f"{path}: is nested too deep to be read: {ADVICE}") from None
    except UnfitError as e:
        raise TraceError(f"{path}: {e}: the file was edited or damaged: {ADVICE}") from None


def _check_format(path: Path, found: dict[str, Any]) -> None:
    if found.get("format") != FORMAT:
        has = "has no 'format'" if "format" not in found else f"'format' is {shown(found['format'])}"
        raise TraceError(f"{path}: {has}, where a verdict says '{FORMAT}': give the verdict.json of a run")
    version = found.get("version")
    if type(version) is not int or version != VERSION:
        raise TraceError(f"{path}: is version {shown(version)} of the format, and this firstdiff reads {VERSION}")


def _verdict(found: dict[str, Any]) -> Verdict:
    told = dict(found)
    if told.get("logits") is not None:  # the worst step, and all steps beside it
        told["logits"] = _inside(told, "logits", "steps")
    made = {f.name: told[f.name] for f in fields(Verdict) if f.name in told}
    verdict: Verdict = record(Verdict, made | {"logits": made.get("logits") or []}, "", spare=True)
    _check_names(verdict.sites, found["sites"])
    _check_sites(verdict.sites)
    _check_details(verdict)
    _check_counter_check(verdict)
    _check_failed(verdict)
    _check_dump(verdict)
    if wrong := misfit(verdict.sensitivity, verdict.verdict, verdict.sites):
        raise UnfitError(*wrong)
    try:
        again = json.loads(verdict.to_json())
    except (KeyError, ValueError, TypeError, OverflowError) as e:
        raise UnfitError("", f"cannot be told again ({type(e).__name__})") from None
    different = _different(found, again, "")
    if different is not None:
        raise UnfitError(*different)
    return verdict


def _inside(told: dict[str, Any], name: str, key: str) -> Any:  # noqa: ANN401 - any JSON value
    value = told[name]
    if not isinstance(value, dict) or key not in value:
        raise UnfitError(name, f"must hold '{key}', and is {shown(value)}")
    return value[key]


def _check_names(sites: tuple[SiteVerdict, ...], told: Sequence[Mapping[str, Any]]) -> None:
    """A site's name says its point, layer and step; what stands beside it must be the same."""
    for i, (s, of) in enumerate(zip(sites, told, strict=True)):
        for part in PARTS:
            if part not in of:
                raise UnfitError(f"sites[{i}]", f"lacks '{part}'")
            own, theirs = getattr(s, part), of[part]
            if own != theirs or type(own) is not type(theirs):
                raise UnfitError(f"sites[{i}].{part}", f"is {shown(theirs)}, and its site is {shown(str(s.site))}")


def _check_sites(sites: tuple[SiteVerdict, ...]) -> None:
    for i, s in enumerate(sites):
        where, name = f"sites[{i}]", shown(str(s.site))
        if s.status in JUDGED:
            if s.local_error is None or s.floor is None:
                raise UnfitError(where, f"({name}) {s.status} without a local error and a floor")
            if (s.status is Status.DIVERGES) != (not s.local_error <= s.floor):
                raise UnfitError(where, f"({name}) {s.status} with local error {s.local_error:g} and floor {s.floor:g}")
    twice = [site for site, n in Counter(s.site for s in sites).items() if n > 1]
    if twice:
        raise UnfitError("sites", f"holds {shown(str(twice[0]))} twice")


def _check_details(verdict: Verdict) -> None:
    known = {s.site for s in verdict.sites}
    for site, detail in verdict.details.items():
        where = f"details.{short(str(site))}"
        if site not in known:
            raise UnfitError(where, "is of a site that is not there")
        if len(detail.axes) != len(detail.shape) or any(len(e.index) != len(detail.shape) for e in detail.worst):
            raise UnfitError(where, "has axes and indices that do not fit its shape")
        _check_charts(where, detail)


def _check_counter_check(verdict: Verdict) -> None:
    check, recorded = verdict.counter_check, verdict.coverage["recorded"]
    if check is not None and check.judged and not len(check.left) <= check.judged <= recorded:
        what = f"is {check.judged}, with {len(check.left)} sites left of {recorded} that were recorded"
        raise UnfitError("counter_check.judged", what)


def _check_failed(verdict: Verdict) -> None:
    known = {s.site for s in verdict.sites}
    for i, failed in enumerate(verdict.failed):
        if failed.site not in known:
            raise UnfitError(f"failed[{i}]", f"is of a site that is not there: {shown(str(failed.site))}")


def _check_dump(verdict: Verdict) -> None:
    """A site that the dump does not hold is not judged: nobody is accused and excused at once."""
    known = {s.site: s for s in verdict.sites}
    for i, finding in enumerate(verdict.dump):
        for site in finding.sites:
            if site not in known:
                raise UnfitError(f"dump[{i}]", f"is of a site that is not there: {shown(str(site))}")
            if not finding.judged and known[site].status is not Status.NOT_COMPARABLE:
                raise UnfitError(f"dump[{i}]", f"covers {shown(str(site))}, which {known[site].status}")


def _check_charts(where: str, detail: Detail) -> None:
    for i, profile in enumerate(detail.profiles):
        if not _fits(profile):
            raise UnfitError(f"{where}.profiles[{i}]", "has another number of errors than its size and step give")
    if detail.histogram is not None and not _drawn(detail.histogram):
        raise UnfitError(f"{where}.histogram", "has other bars or ends than a histogram has")


def _fits(profile: Profile) -> bool:
    return profile.step > 0 and len(profile.errors) == -(-profile.size // profile.step)


def _drawn(h: Histogram) -> bool:
    counts = (*h.candidate, *h.reference)
    return (
        len(h.candidate) == len(h.reference) > 0
        and min(counts) >= 0
        and isfinite(h.low)
        and isfinite(h.high)
        and h.low < h.high
    )


def _different(found: Any, again: Any, where: str) -> tuple[str, str] | None:  # noqa: ANN401 - any JSON values
    """The first place where the file says something else than the record it gives, in words."""
    if isinstance(found, dict) and isinstance(again, dict):
        for key in again:
            if key not in found:
                return where, f"lacks '{short(key)}'"
        for key in found:
            if key not in again:
                return where, f"has a key {shown(key)} that nothing is known of"
        pairs = [(found[k], again[k], f"{where}.{short(k)}") for k in again]
    elif isinstance(found, list) and isinstance(again, list) and len(found) == len(again):
        pairs = [(f, a, f"{where}[{i}]") for i, (f, a) in enumerate(zip(found, again, strict=True))]
    else:
        same = found == again and isinstance(found, bool) == isinstance(again, bool)
        return None if same else (where, f"is {shown(found)}, and what the file holds gives {shown(again)}")
    return next((d for pair in pairs if (d := _different(*pair)) is not None), None)
