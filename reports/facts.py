"""The facts of every report, beside its sentences: coverage, arithmetic, witness, logits, notes.

They are plain strings, as those of :mod:`firstdiff.reports.words`.

`where` is the name or path of ``verdict.json``, to be named where something is left out; None if there is none.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import inf, isnan

from firstdiff.reports.words import REASONS, counted, listed, number
from firstdiff.verdict import Logits, SiteVerdict, Status, Verdict


def facts(verdict: Verdict, where: str | None = None) -> list[tuple[str, str]]:
    """Labels and what stands beside them, those with nothing to say left out."""
    told = [
        ("coverage", _coverage(verdict)),
        ("", reasons(verdict) if verdict.judged else ""),
        ("preflight", ", ".join(f"{k} {v}" for k, v in verdict.preflight.items() if k not in verdict.broken)),
        ("layouts", _layouts(verdict.layouts)),
        ("arithmetic", ", ".join(f"{_GROUPS.get(k, k)} {v}" for k, v in verdict.arithmetic.items())),
        ("witness", _witness(verdict, where)),
        ("logits", _logits(verdict.logits, diverges=verdict.verdict == "diverges")),
        *(("note", note) for note in verdict.notes),
    ]
    return [(label, words) for label, words in told if words]


_GROUPS = {"held": "weights held in"}
"""What is said of a part of the arithmetic, where its key alone says too little."""


def _layouts(layouts: dict[str, str]) -> str:
    """Points by the layout that was taken for them."""
    by_layout: dict[str, list[str]] = {}
    for point, says in layouts.items():
        by_layout.setdefault(says, []).append(point)
    return "; ".join(f"{', '.join(points)}: {says}" for says, points in by_layout.items())


def _coverage(verdict: Verdict) -> str:
    count = Counter(s.status for s in verdict.sites)
    recorded = verdict.coverage["recorded"]
    statuses = ", ".join(f"{s} {count[s]:,}" for s in Status if count[s])
    return f"{recorded:,} of {counted(len(verdict.sites), 'site')} recorded" + (f": {statuses}" if statuses else "")


def reasons(verdict: Verdict) -> str:
    """Why sites are not comparable: the three most frequent reasons, each with a site to look at."""
    sites: dict[str, list[object]] = defaultdict(list)
    for s in verdict.sites:
        if s.status is Status.NOT_COMPARABLE:
            sites[s.reason or "no reason given"].append(s.site)
    if not sites:
        return ""
    ranked = sorted(sites.items(), key=lambda item: -len(item[1]))
    told = [f"{why} ({s[0]}{f' and {len(s) - 1:,} more' if len(s) > 1 else ''})" for why, s in ranked[:REASONS]]
    if len(ranked) > REASONS:
        told.append(f"and {counted(len(ranked) - REASONS, 'more reason')}")
    return f"{sum(map(len, sites.values())):,} not comparable: {'; '.join(told)}"


def _witness(verdict: Verdict, where: str | None) -> str:
    witness = verdict.witness
    if witness is None:
        return ""
    told = [f"{witness.engine} judged on the same tokens: {witness.agrees:,} agree"]
    sites = {s.site: s for s in verdict.sites}
    by_candidate: dict[str, list[object]] = defaultdict(list)
    for site in witness.diverges:
        by_candidate[_beyond(sites.get(site))].append(site)
    for does, of in sorted(by_candidate.items()):
        told.append(f"it diverges from the reference where the candidate {does} at {listed(of, where)}")
    if not witness.judged_too:  # else it stands before all tensors
        told += [f"{check}: {says}" for check, says in witness.broken.items()]
    return "; ".join(told)


def _beyond(site: SiteVerdict | None) -> str:
    """Whether a candidate leaves the reference at a site; one that is doubted for that keeps its local error."""
    if site is None or site.local_error is None or site.floor is None:
        return "is not judged"
    return "does not" if site.local_error <= site.floor else "does"


def _logits(logits: Sequence[Logits], *, diverges: bool) -> str:
    if not logits:
        return ""
    flips = [x for x in logits if not x.top1_agrees]
    told = [_flip(x, diverges=diverges) for x in flips[:REASONS]]
    if len(flips) > REASONS:
        told.append(f"and at {counted(len(flips) - REASONS, 'more step')}")
    worst = max(logits, key=lambda x: inf if isnan(x.kl) else x.kl)
    told = told or ["top-1 agrees at every step"]
    return "; ".join([*told, f"KL at most {number(worst.kl)} nats (step {worst.step})"])


def _flip(x: Logits, *, diverges: bool) -> str:
    """Another top-1 token, and whether rounding may have chosen it: only where nothing before the logits is wrong."""
    told = f"top-1 differs at step {x.step} (token {x.top1} for {x.top1_against}), by a margin of {number(x.margin)}"
    if x.noise is None:
        return f"{told}; it may not be rounding, because tensors before it diverge or were not compared"
    noise = f"what rounding changes these logits by ({number(x.noise)})"
    if not x.within_noise:
        return f"{told}, far more than {noise}"
    few = "no more than" if x.margin <= x.noise else "a few times"
    return f"{told}, {few} {noise}" + ("" if diverges else ": no divergence")
