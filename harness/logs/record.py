"""What is said of a log: one frozen record, and its wording."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

from firstdiff.dumps import Site
from firstdiff.dumps.observation import Unknown
from firstdiff.errors import escaped

FORMAT, VERSION = "firstdiff-log-verdict", 1
MOST_SHOWN = 8  # differences, names, sites in a row: more is read in the JSON

AGREES, DISAGREES, NOT_COMPARED = "agrees", "disagrees", "not compared"


@dataclass(frozen=True, slots=True)
class Difference:
    """One printed number that lies further from the reference's than digits and drift allow."""

    what: str
    printed: float
    reference: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What is said of one observation; `compared` counts its numbers that could be compared."""

    site: Site
    line: int
    status: str
    compared: int = 0
    differences: tuple[Difference, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LogVerdict:
    """The whole result of holding a log against the reference.

    Parameters
    ----------
    log, lines
        The file, and how many lines it has.
    model
        The model's file.
    tokens
        Of each step of the reference.
    reading
        How the log was understood, in one sentence.
    observed
        Every observation in execution order.
    unprinted
        Sites between the last that agrees and the first that disagrees, in execution order.
    unknown
        Names that are not understood.
    notes
        What the reader should know beside it.
    """

    log: str
    lines: int
    model: str
    tokens: tuple[tuple[int, ...], ...]
    reading: str
    observed: tuple[Observed, ...]
    unprinted: tuple[Site, ...] = ()
    unknown: tuple[Unknown, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> Counter[str]:
        """How many observations have each status."""
        return Counter(o.status for o in self.observed)

    @property
    def first(self) -> Observed | None:
        """The first observation in execution order that disagrees."""
        return next((o for o in self.observed if o.status == DISAGREES), None)

    @property
    def before(self) -> Observed | None:
        """The last observation ahead of the first that disagrees."""
        ahead = self.observed[: self.observed.index(self.first)] if self.first is not None else ()
        return next((o for o in reversed(ahead) if o.status == AGREES), None)

    @property
    def later(self) -> tuple[Observed, ...]:
        """Observations that agree although they come after the first that disagrees."""
        if self.first is None:
            return ()
        return tuple(o for o in self.observed[self.observed.index(self.first) :] if o.status == AGREES)

    @property
    def verdict(self) -> str:
        """``agrees``, ``diverges``, or ``incomparable`` where nothing could be compared."""
        if not self.count[AGREES] + self.count[DISAGREES]:
            return "incomparable"
        return "agrees" if self.first is None else "diverges"

    @property
    def exit_code(self) -> int:
        """Of the process: 0 agrees, 1 diverges, 4 incomparable."""
        return {"agrees": 0, "diverges": 1, "incomparable": 4}[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON has it."""
        first, before = self.first, self.before
        return {
            "format": FORMAT,
            "version": VERSION,
            "verdict": self.verdict,
            "first": None if first is None else _plain(first),
            "before": None if before is None else _plain(before),
            "unprinted": [str(site) for site in self.unprinted],
            "log": self.log,
            "lines": self.lines,
            "model": self.model,
            "tokens": [list(t) for t in self.tokens],
            "reading": self.reading,
            "coverage": {
                "observed": len(self.observed),
                "agrees": self.count[AGREES],
                "disagrees": self.count[DISAGREES],
                "not_compared": self.count[NOT_COMPARED],
                "unknown_names": len(self.unknown),
            },
            "unknown": [asdict(u) for u in self.unknown],
            "notes": list(self.notes),
            "observed": [_plain(o) for o in self.observed],
        }


def _plain(observed: Observed) -> dict[str, Any]:
    """A record's fields; numbers that JSON does not have as ``"nan"``, ``"inf"`` and ``"-inf"``."""
    plain = {"site": str(observed.site), "layer": observed.site.layer} | {
        f.name: getattr(observed, f.name) for f in fields(observed) if f.name != "site"
    }
    plain["differences"] = [asdict(d) for d in observed.differences]
    for difference in plain["differences"]:
        difference |= {k: str(v) for k, v in difference.items() if isinstance(v, float) and not isfinite(v)}
    return plain


CAVEAT = (
    "How little this proves: statistics cannot see permuted rows, and a weight that is read in another order has the "
    "same ones; a log's values are free-running, so everything after a fault differs too, and a fault that stays below "
    "rounding is not seen. Dump tensors to be sure: firstdiff run MODEL --candidate YOUR_DUMP."
)


def text(verdict: LogVerdict) -> str:
    """The report, in plain lines that end in a newline."""
    parts = [_headline(verdict), *_about_first(verdict), "", _coverage(verdict), f"Read as: {verdict.reading}."]
    reasons = Counter(o.reason for o in verdict.observed if o.reason is not None)
    parts += [f"Not compared, {n}: {reason}." for reason, n in reasons.most_common(MOST_SHOWN)]
    parts += _unknown(verdict)
    parts += [f"Note: {note}." for note in verdict.notes]
    return escaped("\n".join([*parts, "", CAVEAT, ""]), keep="\n")  # names come from files


def _headline(v: LogVerdict) -> str:
    compared = v.count[AGREES] + v.count[DISAGREES]
    if v.first is None:
        if not compared:
            return f"Nothing in {v.log} could be compared with the reference on {v.model}."
        return f"{v.log} agrees with the reference on {v.model}: all {compared} observations, in the digits printed."
    place = "outside the layers" if v.first.site.layer is None else f"layer {v.first.site.layer}"
    return (
        f"{v.first.site} ({place}, line {v.first.line} of {v.log}) is the first of {compared} observations to disagree "
        f"with the reference on {v.model}."
    )


def _about_first(v: LogVerdict) -> list[str]:
    if v.first is None:
        return []
    rows = [
        f"  {d.what:10}  printed {d.printed:<12.6g}  reference {d.reference:<12.6g}  allowed ±{d.allowed:.2g}"
        for d in v.first.differences[:MOST_SHOWN]
    ]
    if v.before is None:
        rows.append("Nothing printed before it agrees: compare the token ids and the model file first.")
    else:
        rows.append(f"Before it, {v.before.site} (line {v.before.line}) still agrees.")
    if v.unprinted:
        rows.append(f"Between them nothing is printed of {_listed(v.unprinted)}: the fault may be there.")
    if v.later:
        names = _listed(tuple(o.site for o in v.later))
        rows.append(
            f"After it, {len(v.later)} still agree ({names}): if they depend on it, what was printed is something "
            "else than its name says, or its effect is smaller than rounding."
        )
    return rows


def _coverage(v: LogVerdict) -> str:
    unknown = len(v.unknown)
    return (
        f"{len(v.observed)} observations in {v.lines:,} lines: {v.count[AGREES]} agree, {v.count[DISAGREES]} disagree, "
        f"{v.count[NOT_COMPARED]} not compared; {unknown} {'name' if unknown == 1 else 'names'} not understood."
    )


def _unknown(v: LogVerdict) -> list[str]:
    if not v.unknown:
        return []
    shown = [f"{u.name!r} (line {u.line}{f', {u.count} times' if u.count > 1 else ''}: {u.why})" for u in v.unknown]
    more = f", and {len(shown) - MOST_SHOWN} more" if len(shown) > MOST_SHOWN else ""
    return [f"Not understood: {', '.join(shown[:MOST_SHOWN])}{more}. Teach their spelling with --patterns FILE."]


def _listed(sites: tuple[Site, ...]) -> str:
    names = [str(site) for site in sites]
    if len(names) <= MOST_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_SHOWN - 1])}, … {names[-1]}"
